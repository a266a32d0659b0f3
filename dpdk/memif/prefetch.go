//go:build amd64 || arm64

package memif

import "unsafe"

// prefetch makes the CPU fetch the n bytes at p, at least one, all lines at once, and
// does not wait. Nothing depends on it but time.
//
//go:noescape
func prefetch(p unsafe.Pointer, n int)

// prefetchOwn is prefetch of bytes that will be written.
//
//go:noescape
func prefetchOwn(p unsafe.Pointer, n int)
