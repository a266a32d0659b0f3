//go:build dpdk && cgo

package eal_test

import (
	"testing"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/eal"
	"github.com/millrace/millrace/dpdk/porttest"
)

func init() {
	eal.PeerKinds = map[string]func() dpdk.Pairs{"libdpdk": libdpdk, "pureGo": pureGo}
}

func TestKilledPeerProcess(t *testing.T) {
	needEAL(t)
	t.Run("libdpdk here and there", func(t *testing.T) { porttest.SurvivesKilledPeer(t, libdpdk, "libdpdk") })
	t.Run("libdpdk here, pure Go there", func(t *testing.T) { porttest.SurvivesKilledPeer(t, libdpdk, "pureGo") })
	t.Run("pure Go here, libdpdk there", func(t *testing.T) { porttest.SurvivesKilledPeer(t, pureGo, "libdpdk") })
}

// The floods and testpmd in one run; repeat the run, not the benchmarks, to interleave them.
func BenchmarkBothWays64(b *testing.B) {
	if err := eal.Init(); err != nil {
		b.Skipf("libdpdk does not start here: %v", err)
	}
	b.Run("forward", func(b *testing.B) { porttest.BenchmarkForward(b, libdpdk(), "libdpdk") })
	b.Run("testpmd", porttest.BenchmarkTestpmd)
	b.Run("libdpdk", func(b *testing.B) { porttest.BenchmarkBothWays(b, libdpdk(), "libdpdk") })
	b.Run("pureGo", func(b *testing.B) { porttest.BenchmarkBothWays(b, pureGo(), "pureGo") })
}
