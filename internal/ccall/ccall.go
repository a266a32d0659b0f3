// Package ccall calls short C functions as what they are: part of the caller's own work.
//
// A cgo call tells Go's scheduler that the goroutine leaves, as for a system call, and
// asks on the way back to go on. That costs two atomic exchanges, and it has a price that
// is not seen in a benchmark of an empty function: where a process has no idle P, the
// runtime's monitor takes the P away from a call that it finds twice, 20 µs apart, hands
// it to another thread, and then looks again every 20 µs. A loop whose posts take that
// long loses its P, or the CPU to the monitor, in every other round trip.
package ccall

import "unsafe"

// Call runs fn, a C function of one pointer that returns int32_t or nothing, with arg,
// on the thread's system stack, and returns its result, which means nothing if fn has none.
//
// The scheduler takes the time in fn for time in Go code. So fn must be short, some tens of
// microseconds, for a garbage collection that is about to begin waits for it; it must not
// wait for anybody, nor call into Go. It is interrupted by the runtime's signals as in
// any cgo call. arg may point to anywhere: no stack moves and no collection ends meanwhile;
// but fn must not keep it if it points into Go's memory. Any goroutine.
//
//go:noescape
func Call(fn, arg unsafe.Pointer) int32
