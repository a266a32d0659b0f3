#include "textflag.h"

// func Call(fn, arg unsafe.Pointer) int32
//
// It is the runtime's own way to C, and what cgo calls inside of its bookkeeping
// (runtime/cgocall.go). Arguments and result lie where asmcgocall expects them.
TEXT ·Call(SB), NOSPLIT, $0-20
	JMP	runtime·asmcgocall(SB)
