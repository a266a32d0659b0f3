package softroce_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/devicetest"
	"github.com/millrace/millrace/rdma/softroce"
)

func TestConformanceInMemory(t *testing.T) {
	devicetest.Run(t, devicetest.Setup{Open: func(*testing.T) devicetest.Pair {
		net := softroce.NewMemoryNet(1, softroce.Faults{})
		a, b := net.Pair()
		net.Advance(1)
		return devicetest.Pair{
			A: softroce.New(a, softroce.Options{}), B: softroce.New(b, softroce.Options{}), Now: net.Now,
			Idle: func(next int64) { net.Advance(max(next, net.Now()+1000)) },
		}
	}})
}

func TestConformanceOverUDP(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		t.Run(ip, func(t *testing.T) {
			c, err := net.ListenPacket("udp", net.JoinHostPort(ip, "0"))
			if err != nil { // a container may have no IPv6
				t.Skip(err)
			}
			c.Close()
			open := func(t *testing.T) rdma.Device {
				l, err := softroce.NewUDPLink(netip.AddrPortFrom(netip.MustParseAddr(ip), 0))
				if err != nil {
					t.Fatal(err)
				}
				return softroce.New(l, softroce.Options{PeerTimeout: 200 * time.Millisecond})
			}
			devicetest.Run(t, devicetest.Setup{Open: func(t *testing.T) devicetest.Pair {
				return devicetest.Pair{A: open(t), B: open(t)}
			}})
		})
	}
}

// Opening and closing packet sockets waits for the kernel, a tenth of a second for each
// part of the suite: it runs over IPv6 with the race detector, and over IPv4 without.
func TestConformanceOverPackets(t *testing.T) {
	open := softroce.PacketDevices(t, softroce.RaceDetector)
	devicetest.Run(t, devicetest.Setup{Open: func(t *testing.T) devicetest.Pair {
		return devicetest.Pair{A: open(t, 0), B: open(t, 1)}
	}})
}
