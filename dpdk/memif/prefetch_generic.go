//go:build !amd64 && !arm64

package memif

import "unsafe"

func prefetch(unsafe.Pointer, int) {}

func prefetchOwn(unsafe.Pointer, int) {}
