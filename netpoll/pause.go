//go:build amd64 || arm64

package netpoll

// pause tells the CPU that this is a spin: it saves power, and gives the other
// hardware thread of the core its turn. The loop pauses after each cycle that
// found nothing.
func pause()
