//go:build !purego

#include "textflag.h"

// RUN16 takes 16 bytes of each of the three runs.
#define RUN16 \
	LDP.P 16(R1), (R8, R9); \
	LDP.P 16(R3), (R10, R11); \
	LDP.P 16(R4), (R12, R13); \
	CRC32CX R8, R0; \
	CRC32CX R10, R5; \
	CRC32CX R12, R6; \
	CRC32CX R9, R0; \
	CRC32CX R11, R5; \
	CRC32CX R13, R6

// func crc3(crc uint32, p *byte, blocks int) uint32
//
// The raw CRC32C register after blocks of 1536 bytes, at least one. One CRC32CX
// depends on the one before and takes two cycles, so three runs of 512 bytes go
// side by side. To go on for n bytes is to multiply by x^(8n-33) and to feed the
// product to CRC32CX.
TEXT ·crc3(SB), NOSPLIT, $0-28
	MOVWU crc+0(FP), R0
	MOVD p+8(FP), R1
	MOVD blocks+16(FP), R2
	MOVD $0x170076fa, R3 // x^(8·1024-33)
	VMOV R3, V4.D[0]
	MOVD $0xdd7e3b0c, R3 // x^(8·512-33)
	VMOV R3, V5.D[0]

block:
	ADD $512, R1, R3
	ADD $1024, R1, R4
	MOVD ZR, R5
	MOVD ZR, R6
	MOVD $8, R7

run:
	RUN16
	RUN16
	RUN16
	RUN16
	SUB $1, R7
	CBNZ R7, run

	VMOV R0, V0.D[0]
	VMOV R5, V1.D[0]
	VPMULL V4.D1, V0.D1, V0.Q1
	VPMULL V5.D1, V1.D1, V1.Q1
	VEOR V0.B16, V1.B16, V0.B16
	VMOV V0.D[0], R8
	MOVD ZR, R0
	CRC32CX R8, R0
	EORW R6, R0, R0
	MOVD R4, R1
	SUB $1, R2
	CBNZ R2, block
	MOVW R0, ret+24(FP)
	RET

// func addBlocks8(sums *uint64, n int, col *byte)
TEXT ·addBlocks8(SB), NOSPLIT, $0-24
	MOVD sums+0(FP), R0
	MOVD n+8(FP), R1
	MOVD col+16(FP), R2

next8:
	VLD1.P 32(R2), [V0.B16, V1.B16]
	VUADDLV V0.B16, V2
	VUADDLV V1.B16, V3
	VADD V2, V3, V2
	VMOV V2.D[0], R4
	MOVD (R0), R3
	ADD R4, R3, R3
	MOVD.P R3, 8(R0)
	SUB $1, R1
	CBNZ R1, next8
	RET

// func addBlocks16(sums *uint64, n int, col *byte)
TEXT ·addBlocks16(SB), NOSPLIT, $0-24
	MOVD sums+0(FP), R0
	MOVD n+8(FP), R1
	MOVD col+16(FP), R2

next16:
	VLD1.P 64(R2), [V0.H8, V1.H8, V2.H8, V3.H8]
	VUADDLV V0.H8, V4
	VUADDLV V1.H8, V5
	VUADDLV V2.H8, V6
	VUADDLV V3.H8, V7
	VADD V4, V5, V4
	VADD V6, V7, V6
	VADD V4, V6, V4
	VMOV V4.D[0], R4
	MOVD (R0), R3
	ADD R4, R3, R3
	MOVD.P R3, 8(R0)
	SUB $1, R1
	CBNZ R1, next16
	RET

// RAMP: V20 = from + base·{1, 2, 3, 4}, V21 = 4·base, V31 = 0.
#define RAMP \
	VEOR V31.B16, V31.B16, V31.B16; \
	ADDW R3, R2, R4; \
	VMOV R4, V20.S[0]; \
	ADDW R2, R4, R4; \
	VMOV R4, V20.S[1]; \
	ADDW R2, R4, R4; \
	VMOV R4, V20.S[2]; \
	ADDW R2, R4, R4; \
	VMOV R4, V20.S[3]; \
	LSLW $2, R2, R4; \
	VDUP R4, V21.S4

// SUM8: the eight halves of V become running sums; OUT0 and OUT1 get them plus
// the ramp, which moves on.
#define SUM8(V, OUT0, OUT1) \
	VEXT $14, V.B16, V31.B16, V5.B16; \
	VADD V5.H8, V.H8, V.H8; \
	VEXT $12, V.B16, V31.B16, V5.B16; \
	VADD V5.H8, V.H8, V.H8; \
	VEXT $8, V.B16, V31.B16, V5.B16; \
	VADD V5.H8, V.H8, V.H8; \
	VDUP V.H[7], V6.H8; \
	VUADDW V.H4, V20.S4, OUT0.S4; \
	VADD V21.S4, V20.S4, V20.S4; \
	VUADDW2 V.H8, V20.S4, OUT1.S4; \
	VADD V21.S4, V20.S4, V20.S4; \
	VUADDW V6.H4, V20.S4, V20.S4

// func prefix8(ends *[32]uint32, col *byte, base, from uint32)
//
// 32 bytes add up to less than 2^16: their running sums are taken in halves.
TEXT ·prefix8(SB), NOSPLIT, $0-24
	MOVD ends+0(FP), R0
	MOVD col+8(FP), R1
	MOVWU base+16(FP), R2
	MOVWU from+20(FP), R3
	RAMP
	VLD1 (R1), [V0.B16, V1.B16]
	VUXTL V0.B8, V2.H8
	VUXTL2 V0.B16, V3.H8
	SUM8(V2, V16, V17)
	SUM8(V3, V18, V19)
	VST1.P [V16.S4, V17.S4, V18.S4, V19.S4], 64(R0)
	VUXTL V1.B8, V2.H8
	VUXTL2 V1.B16, V3.H8
	SUM8(V2, V16, V17)
	SUM8(V3, V18, V19)
	VST1 [V16.S4, V17.S4, V18.S4, V19.S4], (R0)
	RET

// SUM4: the four words of V become running sums plus the ramp, which moves on.
#define SUM4(V) \
	VEXT $12, V.B16, V31.B16, V5.B16; \
	VADD V5.S4, V.S4, V.S4; \
	VEXT $8, V.B16, V31.B16, V5.B16; \
	VADD V5.S4, V.S4, V.S4; \
	VDUP V.S[3], V6.S4; \
	VADD V20.S4, V.S4, V.S4; \
	VADD V21.S4, V20.S4, V20.S4; \
	VADD V6.S4, V20.S4, V20.S4

// func prefix16(ends *[32]uint32, col *byte, base, from uint32)
TEXT ·prefix16(SB), NOSPLIT, $0-24
	MOVD ends+0(FP), R0
	MOVD col+8(FP), R1
	MOVWU base+16(FP), R2
	MOVWU from+20(FP), R3
	RAMP
	VLD1 (R1), [V0.H8, V1.H8, V2.H8, V3.H8]
	VUXTL V0.H4, V16.S4
	VUXTL2 V0.H8, V17.S4
	VUXTL V1.H4, V18.S4
	VUXTL2 V1.H8, V19.S4
	SUM4(V16)
	SUM4(V17)
	SUM4(V18)
	SUM4(V19)
	VST1.P [V16.S4, V17.S4, V18.S4, V19.S4], 64(R0)
	VUXTL V2.H4, V16.S4
	VUXTL2 V2.H8, V17.S4
	VUXTL V3.H4, V18.S4
	VUXTL2 V3.H8, V19.S4
	SUM4(V16)
	SUM4(V17)
	SUM4(V18)
	SUM4(V19)
	VST1 [V16.S4, V17.S4, V18.S4, V19.S4], (R0)
	RET

// func pack8(dst *byte, values *uint32, n int, base uint32)
//
// n is a multiple of 16, at least 16.
TEXT ·pack8(SB), NOSPLIT, $0-28
	MOVD dst+0(FP), R0
	MOVD values+8(FP), R1
	MOVD n+16(FP), R2
	MOVWU base+24(FP), R3
	VDUP R3, V8.S4

more8:
	VLD1.P 64(R1), [V0.S4, V1.S4, V2.S4, V3.S4]
	VSUB V8.S4, V0.S4, V0.S4
	VSUB V8.S4, V1.S4, V1.S4
	VSUB V8.S4, V2.S4, V2.S4
	VSUB V8.S4, V3.S4, V3.S4
	VUZP1 V1.H8, V0.H8, V0.H8
	VUZP1 V3.H8, V2.H8, V2.H8
	VUZP1 V2.B16, V0.B16, V0.B16
	VST1.P [V0.B16], 16(R0)
	SUB $16, R2
	CBNZ R2, more8
	RET

// func pack16(dst *byte, values *uint32, n int, base uint32)
//
// n is a multiple of 16, at least 16.
TEXT ·pack16(SB), NOSPLIT, $0-28
	MOVD dst+0(FP), R0
	MOVD values+8(FP), R1
	MOVD n+16(FP), R2
	MOVWU base+24(FP), R3
	VDUP R3, V8.S4

more16:
	VLD1.P 64(R1), [V0.S4, V1.S4, V2.S4, V3.S4]
	VSUB V8.S4, V0.S4, V0.S4
	VSUB V8.S4, V1.S4, V1.S4
	VSUB V8.S4, V2.S4, V2.S4
	VSUB V8.S4, V3.S4, V3.S4
	VUZP1 V1.H8, V0.H8, V0.H8
	VUZP1 V3.H8, V2.H8, V1.H8
	VST1.P [V0.H8, V1.H8], 32(R0)
	SUB $16, R2
	CBNZ R2, more16
	RET
