//go:build !purego

#include "go_asm.h"
#include "textflag.h"

// Folding over 512 bits, as in kernels_amd64.s.
DATA line512<>+0(SB)/8, $0x740eef02
DATA line512<>+8(SB)/8, $0x9e4addf8
GLOBL line512<>(SB), RODATA|NOPTR, $16
DATA line128<>+0(SB)/8, $0xf20c0dfe
DATA line128<>+8(SB)/8, $0x493c7d27
GLOBL line128<>(SB), RODATA|NOPTR, $16

// What a register of CRC32C was 64 zero bytes before it was all ones, as it is
// when a checksum begins.
#define BEFORE $0x6b115ea6

// func gatherPlain(records *Record, n int, lens *uint32, times *int64, ends *uint32, most int) (rich uintptr)
//
// n is at least 1. rich is not 0 if some record has a key, headers or no value.
TEXT ·gatherPlain(SB), NOSPLIT, $0-56
	MOVQ records+0(FP), SI
	MOVQ n+8(FP), CX
	MOVQ lens+16(FP), DI
	MOVQ times+24(FP), R8
	MOVQ ends+32(FP), R9
	MOVQ most+40(FP), R13
	XORL AX, AX
	XORL BX, BX

block:
	MOVL AX, (R9)
	ADDQ $4, R9
	MOVL $32, DX
	CMPQ CX, DX
	CMOVQLT CX, DX
	SUBQ DX, CX

record:
	MOVQ Record_Value+8(SI), R10
	MOVQ Record_Timestamp(SI), R11
	ORQ Record_Key(SI), BX
	ORQ Record_Headers+8(SI), BX
	CMPQ Record_Value(SI), $1
	SBBQ R12, R12
	ORQ R12, BX
	CMPQ R10, R13
	CMOVQGT R13, R10
	ADDQ R10, AX
	MOVL R10, (DI)
	MOVQ R11, (R8)
	ADDQ $Record__size, SI
	ADDQ $4, DI
	ADDQ $8, R8
	DECQ DX
	JNZ record
	TESTQ CX, CX
	JNZ block
	MOVQ BX, rich+48(FP)
	RET

// REDUCE: OUT = OP over the eight numbers of Z.
#define REDUCE(OP, Z, Y, X, OUT) \
	VEXTRACTI64X4 $1, Z, Y0; \
	OP Y0, Y, Y; \
	VEXTRACTI128 $1, Y, X0; \
	OP X0, X, X; \
	VPSHUFD $0x4e, X, X0; \
	OP X0, X, X; \
	VMOVQ X, OUT

// func extents(x *extent, lens *uint32, times *int64, n int)
//
// n is at least 1. Eight records at a time; K1 has those that are there, K2 those
// of them that do not begin a block.
TEXT ·extents(SB), NOSPLIT, $0-32
	MOVQ x+0(FP), DI
	MOVQ lens+8(FP), SI
	MOVQ times+16(FP), DX
	MOVQ n+24(FP), CX
	VPTERNLOGQ $0xff, Z0, Z0, Z0
	VPSRLQ $1, Z0, Z4 // the least of lengths, timestamps, steps, starts
	VMOVDQA64 Z4, Z6
	VMOVDQA64 Z4, Z8
	VMOVDQA64 Z4, Z10
	VPSLLQ $63, Z0, Z5 // and the most of them
	VMOVDQA64 Z5, Z7
	VMOVDQA64 Z5, Z9
	VMOVDQA64 Z5, Z11
	VPXORQ Z12, Z12, Z12 // sum of lengths
	MOVL $0xff, R9
	KMOVW R9, K1
	MOVL $0xfe, AX
	KMOVW AX, K3
	MOVL $1, AX
	KMOVW AX, K4
	XORL R8, R8

eight:
	CMPQ CX, $8
	JAE load
	BZHIL CX, R9, AX
	KMOVW AX, K1

load:
	VPMOVZXDQ.Z (SI), K1, Z0
	VMOVDQU64.Z (DX), K1, Z1
	VPADDQ Z0, Z12, Z12
	VPMINSQ Z0, Z4, K1, Z4
	VPMAXSQ Z0, Z5, K1, Z5
	VPMINSQ Z1, Z6, K1, Z6
	VPMAXSQ Z1, Z7, K1, Z7
	KMOVW K1, K2
	TESTQ $3, R8
	JNZ steps
	KANDW K3, K1, K2
	VPMINSQ Z1, Z10, K4, Z10
	VPMAXSQ Z1, Z11, K4, Z11

steps:
	VMOVDQU64.Z -8(DX), K2, Z2
	VPSUBQ Z2, Z1, Z2
	VPMINSQ Z2, Z8, K2, Z8
	VPMAXSQ Z2, Z9, K2, Z9
	ADDQ $32, SI
	ADDQ $64, DX
	INCQ R8
	SUBQ $8, CX
	JGT eight

	REDUCE(VPMINSQ, Z4, Y4, X4, extent_minLen(DI))
	REDUCE(VPMAXSQ, Z5, Y5, X5, extent_maxLen(DI))
	REDUCE(VPMINSQ, Z6, Y6, X6, extent_minTime(DI))
	REDUCE(VPMAXSQ, Z7, Y7, X7, extent_maxTime(DI))
	REDUCE(VPMINSQ, Z8, Y8, X8, extent_minStep(DI))
	REDUCE(VPMAXSQ, Z9, Y9, X9, extent_maxStep(DI))
	REDUCE(VPMINSQ, Z10, Y10, X10, extent_minStart(DI))
	REDUCE(VPMAXSQ, Z11, Y11, X11, extent_maxStart(DI))
	REDUCE(VPADDQ, Z12, Y12, X12, extent_bytes(DI))
	VZEROUPPER
	RET

// func copyFold(dst *byte, records *Record, n int) (bytes int, crc uint32)
//
// Copies the values of n records, at least 1, one behind the other. bytes is how
// many they have, crc the CRC32C of as many whole lines of 64 bytes as they fill.
// It touches no byte but those of the values, and those that they are copied to.
//
// A line is put together in Z0: the R9 bytes of it that are there, and in the
// bytes behind them the next value, loaded from as much in front of it. Bytes that
// a mask leaves out are not accessed.
TEXT ·copyFold(SB), NOSPLIT, $0-36
	MOVQ dst+0(FP), DI
	MOVQ records+8(FP), SI
	MOVQ n+16(FP), CX
	MOVQ $-1, R11
	XORL R9, R9
	VPXORQ Z0, Z0, Z0
	MOVL BEFORE, AX
	VMOVD AX, X1
	VBROADCASTI32X4 line512<>(SB), Z9
	VMOVDQU line128<>(SB), X10

value:
	MOVQ Record_Value(SI), R8
	MOVQ Record_Value+8(SI), AX
	ADDQ $Record__size, SI
	SUBQ R9, R8
	ADDQ R9, AX
	SHLXQ R9, R11, R10
	CMPQ AX, $64
	JB short
	KMOVQ R10, K1
	VMOVDQU8.Z (R8), K1, Z2
	VPORQ Z2, Z0, Z0

line:
	VMOVDQU64 Z0, (DI)
	VPCLMULQDQ $0x00, Z9, Z1, Z4
	VPCLMULQDQ $0x11, Z9, Z1, Z1
	VPTERNLOGQ $0x96, Z0, Z4, Z1
	ADDQ $64, R8
	ADDQ $64, DI
	SUBQ $64, AX
	CMPQ AX, $64
	JB rest
	VMOVDQU64 (R8), Z0
	JMP line

rest:
	BZHIQ AX, R11, R10
	KMOVQ R10, K1
	VMOVDQU8.Z (R8), K1, Z0
	MOVQ AX, R9
	DECQ CX
	JNZ value
	JMP end

short:
	BZHIQ AX, R10, R10
	KMOVQ R10, K1
	VMOVDQU8.Z (R8), K1, Z2
	VPORQ Z2, Z0, Z0
	MOVQ AX, R9
	DECQ CX
	JNZ value

end:
	BZHIQ R9, R11, R10
	KMOVQ R10, K1
	VMOVDQU8 Z0, K1, (DI)
	ADDQ R9, DI
	SUBQ dst+0(FP), DI
	MOVQ DI, bytes+24(FP)

	VEXTRACTI32X4 $1, Z1, X2
	VEXTRACTI32X4 $2, Z1, X3
	VEXTRACTI32X4 $3, Z1, X5
	VPCLMULQDQ $0x00, X10, X1, X4
	VPCLMULQDQ $0x11, X10, X1, X1
	VPTERNLOGQ $0x96, X2, X4, X1
	VPCLMULQDQ $0x00, X10, X1, X4
	VPCLMULQDQ $0x11, X10, X1, X1
	VPTERNLOGQ $0x96, X3, X4, X1
	VPCLMULQDQ $0x00, X10, X1, X4
	VPCLMULQDQ $0x11, X10, X1, X1
	VPTERNLOGQ $0x96, X5, X4, X1
	VMOVQ X1, AX
	VPEXTRQ $1, X1, DX
	XORL BX, BX
	CRC32Q AX, BX
	CRC32Q DX, BX
	NOTL BX
	MOVL BX, crc+32(FP)
	VZEROUPPER
	RET
