//go:build dpdk && cgo

package eal

// #include "shim.h"
import "C"

import "unsafe"

// room is the frame in an mbuf as a slice. It is C memory, valid until the mbuf
// goes back; the garbage collector ignores it.
func room(s *C.struct_mr_slot) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(s.data)), int(s.room))
}
