#include "textflag.h"

// CRC-32 (IEEE, reflected) by carry-less multiplication: V. Gopal et al., "Fast CRC
// Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel 2009. The
// constants are x^n mod P, bit-reflected; icrc_amd64_test.go computes them again.

// x^(4·128+32), x^(4·128-32): a block 64 bytes on
DATA fold64<>+0(SB)/8, $0x154442bd4
DATA fold64<>+8(SB)/8, $0x1c6e41596
GLOBL fold64<>(SB), RODATA|NOPTR, $16

// x^(16·128+32), x^(16·128-32): 256 bytes on
DATA fold256<>+0(SB)/8, $0x11542778a
DATA fold256<>+8(SB)/8, $0x1322d1430
GLOBL fold256<>(SB), RODATA|NOPTR, $16

// x^(3·128+32), x^(3·128-32): 48 bytes on
DATA fold48<>+0(SB)/8, $0x3db1ecdc
DATA fold48<>+8(SB)/8, $0x174359406
GLOBL fold48<>(SB), RODATA|NOPTR, $16

// x^(2·128+32), x^(2·128-32): 32 bytes on
DATA fold32<>+0(SB)/8, $0xf1da05aa
DATA fold32<>+8(SB)/8, $0x15a546366
GLOBL fold32<>(SB), RODATA|NOPTR, $16

// x^(128+32), x^(128-32): 16 bytes on
DATA fold16<>+0(SB)/8, $0x1751997d0
DATA fold16<>+8(SB)/8, $0x0ccaa009e
GLOBL fold16<>(SB), RODATA|NOPTR, $16

// x^64: the last 64 bits
DATA fold8<>+0(SB)/8, $0x163cd6124
GLOBL fold8<>(SB), RODATA|NOPTR, $8

// P and 2^64/P, for Barrett's reduction
DATA barrett<>+0(SB)/8, $0x1db710641
DATA barrett<>+8(SB)/8, $0x1f7011641
GLOBL barrett<>(SB), RODATA|NOPTR, $16

// the BTH's fifth byte
DATA bthMask<>+0(SB)/8, $0x000000ff00000000
DATA bthMask<>+8(SB)/8, $0
GLOBL bthMask<>(SB), RODATA|NOPTR, $16

// FOLD advances acc over the block of k and adds next; tmp is spoilt.
#define FOLD(k, acc, tmp, next) \
	MOVOA     acc, tmp       \
	PCLMULQDQ $0x00, k, acc  \
	PCLMULQDQ $0x11, k, tmp  \
	PXOR      next, acc      \
	PXOR      tmp, acc

// FOURTOONE folds the four blocks X1 … X4 to one, X1, side by side. It leaves fold16 in X0.
#define FOURTOONE \
	MOVOU     fold48<>(SB), X10 \
	MOVOU     fold32<>(SB), X11 \
	MOVOU     fold16<>(SB), X0  \
	FOLD(X10, X1, X5, X4)       \
	MOVOA     X2, X6            \
	PCLMULQDQ $0x00, X11, X2    \
	PCLMULQDQ $0x11, X11, X6    \
	MOVOA     X3, X7            \
	PCLMULQDQ $0x00, X0, X3     \
	PCLMULQDQ $0x11, X0, X7     \
	PXOR      X6, X2            \
	PXOR      X7, X3            \
	PXOR      X2, X1            \
	PXOR      X3, X1

// REDUCE makes 32 bits, AX, of the block X1: 128 bits to 96, 96 to 64, and 64 to 32.
// X0 holds fold16.
#define REDUCE \
	PCMPEQB   X3, X3            \
	PSRLQ     $32, X3           \
	PCLMULQDQ $0x01, X1, X0     \
	PSRLDQ    $8, X1            \
	PXOR      X0, X1            \
	MOVQ      fold8<>(SB), X0   \
	MOVOA     X1, X2            \
	PSRLDQ    $4, X2            \
	PAND      X3, X1            \
	PCLMULQDQ $0x00, X0, X1     \
	PXOR      X2, X1            \
	MOVOU     barrett<>(SB), X0 \
	MOVOA     X1, X2            \
	PAND      X3, X1            \
	PCLMULQDQ $0x10, X0, X1     \
	PAND      X3, X1            \
	PCLMULQDQ $0x00, X0, X1     \
	PXOR      X2, X1            \
	PEXTRD    $1, X1, AX

// func foldBlocks(state uint32, p *byte, n int) uint32
//
// n is a multiple of 16, at least 64; p has n bytes.
TEXT ·foldBlocks(SB), NOSPLIT, $0-28
	MOVL  state+0(FP), X0
	MOVQ  p+8(FP), SI
	MOVQ  n+16(FP), CX
	MOVOU (SI), X1
	MOVOU 16(SI), X2
	MOVOU 32(SI), X3
	MOVOU 48(SI), X4
	MOVOU bthMask<>(SB), X5
	POR   X5, X1
	PXOR  X0, X1
	ADDQ  $64, SI
	SUBQ  $64, CX
	CMPQ  CX, $64
	JB    fewer

	MOVOU fold64<>(SB), X0

loop64:
	MOVOU (SI), X10
	MOVOU 16(SI), X11
	MOVOU 32(SI), X12
	MOVOU 48(SI), X13
	FOLD(X0, X1, X5, X10)
	FOLD(X0, X2, X6, X11)
	FOLD(X0, X3, X7, X12)
	FOLD(X0, X4, X8, X13)
	ADDQ  $64, SI
	SUBQ  $64, CX
	CMPQ  CX, $64
	JAE   loop64

fewer:
	FOURTOONE

loop16:
	CMPQ  CX, $16
	JB    reduce
	MOVOU (SI), X10
	FOLD(X0, X1, X5, X10)
	ADDQ  $16, SI
	SUBQ  $16, CX
	JMP   loop16

reduce:
	REDUCE
	MOVL AX, ret+24(FP)
	RET

// FOLDWIDE advances four blocks side by side.
#define FOLDWIDE(k, acc, tmp, next) \
	VPCLMULQDQ $0x00, k, acc, tmp  \
	VPCLMULQDQ $0x11, k, acc, acc  \
	VPTERNLOGD $0x96, next, tmp, acc // the exclusive or of all three

// LOADWIDE and STOREWIDE move 256 bytes.
#define LOADWIDE(a, b, c, d) \
	VMOVDQU64 (SI), a    \
	VMOVDQU64 64(SI), b  \
	VMOVDQU64 128(SI), c \
	VMOVDQU64 192(SI), d

#define STOREWIDE(a, b, c, d) \
	VMOVDQU64 a, (DI)    \
	VMOVDQU64 b, 64(DI)  \
	VMOVDQU64 c, 128(DI) \
	VMOVDQU64 d, 192(DI) \
	ADDQ      $256, DI

// func foldWide(state uint32, dst, src *byte, n int) uint32
//
// n is a multiple of 64, at least 256; src, and dst if it is not nil, have n bytes.
TEXT ·foldWide(SB), NOSPLIT, $0-36
	MOVL  state+0(FP), AX
	MOVQ  dst+8(FP), DI
	MOVQ  src+16(FP), SI
	MOVQ  n+24(FP), CX
	VMOVD AX, X0
	LOADWIDE(Z1, Z2, Z3, Z4)
	TESTQ DI, DI
	JZ    begin
	STOREWIDE(Z1, Z2, Z3, Z4)

begin:
	VPXORQ Z0, Z1, Z1
	ADDQ   $256, SI
	SUBQ   $256, CX
	CMPQ   CX, $256
	JB     join

	VBROADCASTI32X4 fold256<>(SB), Z0
	TESTQ DI, DI
	JZ    sum256

copy256:
	LOADWIDE(Z9, Z10, Z11, Z12)
	STOREWIDE(Z9, Z10, Z11, Z12)
	FOLDWIDE(Z0, Z1, Z5, Z9)
	FOLDWIDE(Z0, Z2, Z6, Z10)
	FOLDWIDE(Z0, Z3, Z7, Z11)
	FOLDWIDE(Z0, Z4, Z8, Z12)
	ADDQ  $256, SI
	SUBQ  $256, CX
	CMPQ  CX, $256
	JAE   copy256
	JMP   join

sum256:
	LOADWIDE(Z9, Z10, Z11, Z12)
	FOLDWIDE(Z0, Z1, Z5, Z9)
	FOLDWIDE(Z0, Z2, Z6, Z10)
	FOLDWIDE(Z0, Z3, Z7, Z11)
	FOLDWIDE(Z0, Z4, Z8, Z12)
	ADDQ  $256, SI
	SUBQ  $256, CX
	CMPQ  CX, $256
	JAE   sum256

join:
	VBROADCASTI32X4 fold64<>(SB), Z0
	FOLDWIDE(Z0, Z1, Z5, Z2)
	FOLDWIDE(Z0, Z1, Z5, Z3)
	FOLDWIDE(Z0, Z1, Z5, Z4)

loop64:
	CMPQ CX, $64
	JB   narrow
	VMOVDQU64 (SI), Z2
	TESTQ DI, DI
	JZ   skip
	VMOVDQU64 Z2, (DI)
	ADDQ $64, DI

skip:
	FOLDWIDE(Z0, Z1, Z5, Z2)
	ADDQ $64, SI
	SUBQ $64, CX
	JMP  loop64

narrow:
	VEXTRACTI32X4 $1, Z1, X2
	VEXTRACTI32X4 $2, Z1, X3
	VEXTRACTI32X4 $3, Z1, X4
	VZEROUPPER
	FOURTOONE
	REDUCE
	MOVL AX, ret+32(FP)
	RET
