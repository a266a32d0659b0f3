package memif_test

import (
	"testing"

	"github.com/millrace/millrace/dpdk"
	"github.com/millrace/millrace/dpdk/memif"
	"github.com/millrace/millrace/dpdk/porttest"
)

func pairs() dpdk.Pairs { return &memif.Pairs{} }

func init() { memif.PeerKinds = map[string]func() dpdk.Pairs{"memif": pairs} }

func TestKilledPeerProcess(t *testing.T) { porttest.SurvivesKilledPeer(t, pairs, "memif") }

func BenchmarkBothWays64(b *testing.B) { porttest.BenchmarkBothWays(b, pairs(), "memif") }
