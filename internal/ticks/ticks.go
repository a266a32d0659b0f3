//go:build amd64 || arm64

package ticks

// ticks is the CPU's counter: the time stamp counter, CNTVCT_EL0. See counterTrusted.
func ticks() uint64
