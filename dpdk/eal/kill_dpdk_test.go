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
