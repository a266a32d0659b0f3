//go:build !purego

#include "textflag.h"

// A polynomial folds over a distance of D bits by two carry-less products: of its
// low half with x^(D+31) and of its high half with x^(D-33), modulo CRC32C's
// polynomial, bits reversed. (Gopal et al., "Fast CRC Computation for Generic
// Polynomials Using PCLMULQDQ Instruction", Intel 2009.)
DATA fold2048<>+0(SB)/8, $0xdcb17aa4
DATA fold2048<>+8(SB)/8, $0xb9e02b86
GLOBL fold2048<>(SB), RODATA|NOPTR, $16
DATA fold512<>+0(SB)/8, $0x740eef02
DATA fold512<>+8(SB)/8, $0x9e4addf8
GLOBL fold512<>(SB), RODATA|NOPTR, $16
DATA fold128<>+0(SB)/8, $0xf20c0dfe
DATA fold128<>+8(SB)/8, $0x493c7d27
GLOBL fold128<>(SB), RODATA|NOPTR, $16
DATA fold26624<>+0(SB)/8, $0xb2b02c25
DATA fold26624<>+8(SB)/8, $0x5f0e0438
GLOBL fold26624<>(SB), RODATA|NOPTR, $16

// A checksum register moves on by n bytes as its carry-less product with x^(8n-33),
// which CRC32Q reduces: here 2,048 and 1,024.
DATA shiftRuns<>+0(SB)/8, $0xa51b6135
DATA shiftRuns<>+8(SB)/8, $0x170076fa
GLOBL shiftRuns<>(SB), RODATA|NOPTR, $16

// FOLD: Z = Z folded by the constant K, plus what is at MEM.
#define FOLD(K, Z, T, MEM) \
	VPCLMULQDQ $0x00, K, Z, T; \
	VPCLMULQDQ $0x11, K, Z, Z; \
	VPTERNLOGQ $0x96, MEM, T, Z

// RUNS: the next eight bytes of each of the three runs.
#define RUNS(OFF) \
	CRC32Q OFF(R8), BX; \
	CRC32Q OFF+1024(R8), DX; \
	CRC32Q OFF+2048(R8), R11

// func crcFold(crc uint32, p *byte, n int) uint32
//
// The raw CRC32C register after n bytes; n is a multiple of 64, at least 256.
//
// Four registers fold 64 bytes each. Where many bytes are left, CRC32Q, which has a
// unit of its own, meanwhile sums what follows the next 8,192 of them: three
// runs of 1,024 bytes, for it answers after three cycles. The registers then fold over the
// runs, whose checksum joins what is behind them: 1.3 times the speed of folding alone.
TEXT ·crcFold(SB), NOSPLIT, $0-28
	MOVL crc+0(FP), AX
	MOVQ p+8(FP), SI
	MOVQ n+16(FP), CX
	VMOVD AX, X4
	VPXORQ (SI), Z4, Z0
	VMOVDQU64 64(SI), Z1
	VMOVDQU64 128(SI), Z2
	VMOVDQU64 192(SI), Z3
	ADDQ $256, SI
	SUBQ $256, CX
	VBROADCASTI32X4 fold2048<>(SB), Z8
	VBROADCASTI32X4 fold512<>(SB), Z9
	VMOVDQU fold128<>(SB), X10
	CMPQ CX, $11520
	JB few
	VBROADCASTI32X4 fold26624<>(SB), Z11
	VMOVDQU shiftRuns<>(SB), X12

many:
	LEAQ 8192(SI), R8
	XORL BX, BX
	XORL DX, DX
	XORL R11, R11
	MOVL $32, AX

mixed:
	FOLD(Z8, Z0, Z4, (SI))
	FOLD(Z8, Z1, Z5, 64(SI))
	RUNS(0)
	RUNS(8)
	FOLD(Z8, Z2, Z6, 128(SI))
	FOLD(Z8, Z3, Z7, 192(SI))
	RUNS(16)
	RUNS(24)
	ADDQ $256, SI
	ADDQ $32, R8
	DECL AX
	JNZ mixed

	VMOVD BX, X5
	VMOVD DX, X6
	VPCLMULQDQ $0x00, X12, X5, X5
	VPCLMULQDQ $0x10, X12, X6, X6
	VPXOR X5, X6, X5
	VMOVQ X5, AX
	XORL BX, BX
	CRC32Q AX, BX
	XORL R11, BX
	ADDQ $3072, SI
	FOLD(Z11, Z0, Z4, (SI))
	FOLD(Z11, Z1, Z5, 64(SI))
	FOLD(Z11, Z2, Z6, 128(SI))
	FOLD(Z11, Z3, Z7, 192(SI))
	VMOVD BX, X4
	VPXORQ Z4, Z0, Z0
	ADDQ $256, SI
	SUBQ $11520, CX
	CMPQ CX, $11520
	JAE many

few:
	CMPQ CX, $256
	JB merge

loop:
	FOLD(Z8, Z0, Z4, (SI))
	FOLD(Z8, Z1, Z5, 64(SI))
	FOLD(Z8, Z2, Z6, 128(SI))
	FOLD(Z8, Z3, Z7, 192(SI))
	ADDQ $256, SI
	SUBQ $256, CX
	CMPQ CX, $256
	JAE loop

merge:
	FOLD(Z9, Z0, Z4, Z1)
	FOLD(Z9, Z0, Z4, Z2)
	FOLD(Z9, Z0, Z4, Z3)
	JMP check

single:
	FOLD(Z9, Z0, Z4, (SI))
	ADDQ $64, SI
	SUBQ $64, CX

check:
	TESTQ CX, CX
	JNZ single

	VEXTRACTI32X4 $1, Z0, X1
	VEXTRACTI32X4 $2, Z0, X2
	VEXTRACTI32X4 $3, Z0, X3
	FOLD(X10, X0, X4, X1)
	FOLD(X10, X0, X4, X2)
	FOLD(X10, X0, X4, X3)
	VMOVQ X0, AX
	VPEXTRQ $1, X0, DX
	XORL BX, BX
	CRC32Q AX, BX
	CRC32Q DX, BX
	VZEROUPPER
	MOVL BX, ret+24(FP)
	RET

// PREFIX: the eight lengths in Y0 become running sums that go on from Y7, which
// becomes the last of them. Y8 holds the base.
#define PREFIX(OUT) \
	VPADDD Y8, Y0, Y0; \
	VPSLLDQ $4, Y0, Y1; \
	VPADDD Y1, Y0, Y0; \
	VPSLLDQ $8, Y0, Y1; \
	VPADDD Y1, Y0, Y0; \
	VPSHUFD $0xff, Y0, Y1; \
	VPERM2I128 $0x08, Y1, Y1, Y1; \
	VPADDD Y1, Y0, Y0; \
	VPSHUFD $0xff, Y0, Y1; \
	VPERM2I128 $0x11, Y1, Y1, Y1; \
	VPADDD Y7, Y0, Y0; \
	VPADDD Y1, Y7, Y7; \
	VMOVDQU Y0, OUT

// func prefix8(ends *[32]uint32, col *byte, base, from uint32)
TEXT ·prefix8(SB), NOSPLIT, $0-24
	MOVQ ends+0(FP), DI
	MOVQ col+8(FP), SI
	MOVL base+16(FP), AX
	VMOVD AX, X8
	VPBROADCASTD X8, Y8
	MOVL from+20(FP), AX
	VMOVD AX, X7
	VPBROADCASTD X7, Y7
	VPMOVZXBD (SI), Y0
	PREFIX((DI))
	VPMOVZXBD 8(SI), Y0
	PREFIX(32(DI))
	VPMOVZXBD 16(SI), Y0
	PREFIX(64(DI))
	VPMOVZXBD 24(SI), Y0
	PREFIX(96(DI))
	VZEROUPPER
	RET

// func prefix16(ends *[32]uint32, col *byte, base, from uint32)
TEXT ·prefix16(SB), NOSPLIT, $0-24
	MOVQ ends+0(FP), DI
	MOVQ col+8(FP), SI
	MOVL base+16(FP), AX
	VMOVD AX, X8
	VPBROADCASTD X8, Y8
	MOVL from+20(FP), AX
	VMOVD AX, X7
	VPBROADCASTD X7, Y7
	VPMOVZXWD (SI), Y0
	PREFIX((DI))
	VPMOVZXWD 16(SI), Y0
	PREFIX(32(DI))
	VPMOVZXWD 32(SI), Y0
	PREFIX(64(DI))
	VPMOVZXWD 48(SI), Y0
	PREFIX(96(DI))
	VZEROUPPER
	RET

// func addBlocks8(sums *uint64, n int, col *byte)
TEXT ·addBlocks8(SB), NOSPLIT, $0-24
	MOVQ sums+0(FP), DI
	MOVQ n+8(FP), CX
	MOVQ col+16(FP), SI
	VPXOR Y2, Y2, Y2
	TESTQ CX, CX
	JZ done8

next8:
	VPSADBW (SI), Y2, Y0
	VEXTRACTI128 $1, Y0, X1
	VPADDQ X1, X0, X0
	VPSRLDQ $8, X0, X1
	VPADDQ X1, X0, X0
	VMOVQ X0, AX
	ADDQ AX, (DI)
	ADDQ $32, SI
	ADDQ $8, DI
	DECQ CX
	JNZ next8

done8:
	VZEROUPPER
	RET

// func addBlocks16(sums *uint64, n int, col *byte)
TEXT ·addBlocks16(SB), NOSPLIT, $0-24
	MOVQ sums+0(FP), DI
	MOVQ n+8(FP), CX
	MOVQ col+16(FP), SI
	VPCMPEQD Y5, Y5, Y5
	VPSRLD $16, Y5, Y5
	TESTQ CX, CX
	JZ done16

next16:
	VMOVDQU (SI), Y0
	VMOVDQU 32(SI), Y1
	VPSRLD $16, Y0, Y2
	VPAND Y5, Y0, Y0
	VPSRLD $16, Y1, Y3
	VPAND Y5, Y1, Y1
	VPADDD Y2, Y0, Y0
	VPADDD Y3, Y1, Y1
	VPADDD Y1, Y0, Y0
	VEXTRACTI128 $1, Y0, X1
	VPADDD X1, X0, X0
	VPSHUFD $0x4e, X0, X1
	VPADDD X1, X0, X0
	VPSHUFD $0xb1, X0, X1
	VPADDD X1, X0, X0
	VMOVD X0, AX
	ADDQ AX, (DI)
	ADDQ $64, SI
	ADDQ $8, DI
	DECQ CX
	JNZ next16

done16:
	VZEROUPPER
	RET
