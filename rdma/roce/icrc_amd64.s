#include "textflag.h"

// CRC-32 (IEEE, reflected) by carry-less multiplication: V. Gopal et al., "Fast CRC
// Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel 2009. The
// constants are x^n mod P, bit-reflected; icrc_amd64_test.go computes them again.

// x^(4·128+32), x^(4·128-32): a block 64 bytes on
DATA fold64<>+0(SB)/8, $0x154442bd4
DATA fold64<>+8(SB)/8, $0x1c6e41596
GLOBL fold64<>(SB), RODATA|NOPTR, $16

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
	// Four blocks to one, side by side.
	MOVOU fold48<>(SB), X10
	MOVOU fold32<>(SB), X11
	MOVOU fold16<>(SB), X0
	FOLD(X10, X1, X5, X4)
	MOVOA X2, X6
	PCLMULQDQ $0x00, X11, X2
	PCLMULQDQ $0x11, X11, X6
	MOVOA X3, X7
	PCLMULQDQ $0x00, X0, X3
	PCLMULQDQ $0x11, X0, X7
	PXOR  X6, X2
	PXOR  X7, X3
	PXOR  X2, X1
	PXOR  X3, X1

loop16:
	CMPQ  CX, $16
	JB    reduce
	MOVOU (SI), X10
	FOLD(X0, X1, X5, X10)
	ADDQ  $16, SI
	SUBQ  $16, CX
	JMP   loop16

reduce:
	// 128 bits to 96, 96 to 64
	PCMPEQB   X3, X3
	PSRLQ     $32, X3 // the low 32 bits of each half
	PCLMULQDQ $0x01, X1, X0
	PSRLDQ    $8, X1
	PXOR      X0, X1
	MOVQ      fold8<>(SB), X0
	MOVOA     X1, X2
	PSRLDQ    $4, X2
	PAND      X3, X1
	PCLMULQDQ $0x00, X0, X1
	PXOR      X2, X1

	// 64 to 32
	MOVOU     barrett<>(SB), X0
	MOVOA     X1, X2
	PAND      X3, X1
	PCLMULQDQ $0x10, X0, X1
	PAND      X3, X1
	PCLMULQDQ $0x00, X0, X1
	PXOR      X2, X1
	PEXTRD    $1, X1, AX
	MOVL      AX, ret+24(FP)
	RET
