package roce

import "golang.org/x/sys/cpu"

// foldBlocks continues state (not inverted) over the n bytes of p, n a multiple of
// 16 and at least foldMin, with the BTH's fifth byte as ones.
//
//go:noescape
func foldBlocks(state uint32, p *byte, n int) uint32

// foldMin is the shortest packet that foldBlocks takes.
const foldMin = 64

// foldWide continues state over the n bytes of src, n a multiple of 64 and at least
// foldWideMin, and copies them to dst unless that is nil. There is no BTH in them.
//
//go:noescape
func foldWide(state uint32, dst, src *byte, n int) uint32

// foldWideMin is the shortest that foldWide takes.
const foldWideMin = 256

var haveWide = haveFold && cpu.X86.HasAVX512F && cpu.X86.HasAVX512VPCLMULQDQ

var haveFold = cpu.X86.HasPCLMULQDQ && cpu.X86.HasSSE41

// sum continues state (not inverted) over a packet with the BTH's fifth byte as
// ones; sumGeneric says the same in Go.
func sum(s uint32, packet []byte) uint32 {
	if len(packet) >= 8+2*foldWideMin && haveWide {
		s, packet = sumStart(s, packet)
		n := len(packet) &^ 63
		return ^sumBytes(foldWide(s, nil, &packet[0], n), packet[n:])
	}
	if len(packet) < foldMin || !haveFold {
		return sumGeneric(s, packet)
	}
	n := len(packet) &^ 15
	return ^sumBytes(foldBlocks(s, &packet[0], n), packet[n:])
}

// copySum continues state (not inverted) over src, and copies it to dst;
// copySumGeneric says the same in Go.
func copySum(s uint32, dst, src []byte) uint32 {
	if len(src) < foldWideMin || !haveWide {
		return copySumGeneric(s, dst, src)
	}
	n := len(src) &^ 63
	s = foldWide(s, &dst[:n][0], &src[0], n)
	copy(dst[n:], src[n:])
	return sumBytes(s, src[n:])
}
