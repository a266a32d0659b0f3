package roce

import "golang.org/x/sys/cpu"

// foldBlocks continues state (not inverted) over the n bytes of p, n a multiple of
// 16 and at least foldMin, with the BTH's fifth byte as ones.
//
//go:noescape
func foldBlocks(state uint32, p *byte, n int) uint32

// foldMin is the shortest packet that foldBlocks takes.
const foldMin = 64

var haveFold = cpu.X86.HasPCLMULQDQ && cpu.X86.HasSSE41

// sum continues state (not inverted) over a packet with the BTH's fifth byte as
// ones; sumGeneric says the same in Go.
func sum(s uint32, packet []byte) uint32 {
	if len(packet) < foldMin || !haveFold {
		return sumGeneric(s, packet)
	}
	n := len(packet) &^ 15
	return ^sumBytes(foldBlocks(s, &packet[0], n), packet[n:])
}
