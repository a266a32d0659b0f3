//go:build !amd64 && !arm64

package netpoll

func pause() {}
