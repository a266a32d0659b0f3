//go:build !amd64

package roce

func sum(s uint32, packet []byte) uint32 { return sumGeneric(s, packet) }

func copySum(s uint32, dst, src []byte) uint32 { return copySumGeneric(s, dst, src) }
