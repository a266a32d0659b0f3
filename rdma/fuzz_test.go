package rdma_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/rdma/bootstrap"
)

// FuzzAccept is a peer that lies about its queue pair: it is refused by name, or
// gets a connection that harms nobody. Either way the listener goes on.
func FuzzAccept(f *testing.F) {
	f.Add("127.0.0.1", 4791, 17, 0, 1024, 8, 4096, 1<<20, []byte{})
	f.Add("127.0.0.1", 65536, -1, 1<<24, 1500, 5000, 0, 0, []byte{})
	f.Add("224.0.0.1", 1, 0xffffff, 1, 4096, 4096, 8<<20, 1<<30, []byte{})
	f.Add("::1", 1, 2, 1, 256, 1, 256, 1, []byte("MLRB\x00\x02\x07\x00\x00\x02{}"))
	f.Add("10.255.255.1", 4791, 2, 1, 256, 1, 256, 1, []byte("MLRB\x00\x02\x0a\x00\x00\x02{}MLRB"))
	server := startNode(f, nodeOptions{timeout: 50 * time.Millisecond})
	sh := newCollector()
	url := server.listen(acceptOnly{sh})
	f.Fuzz(func(t *testing.T, gid string, port, qpn, psn, mtu, credits, receiveBytes, maxMessage int, then []byte) {
		nc := dialTCP(t, url)
		hello, err := bootstrap.Append(nil, &bootstrap.Hello{Instance: bootstrap.Instance{1}, Loop: 1, Fabric: "udp"})
		if err != nil {
			t.Fatal(err)
		}
		body := fmt.Sprintf(`{"qp":{"device":"d","label":"l","gid":%q,"udpPort":%d,"qpn":%d,"psn":%d,"pathMTU":%d,"credits":%d,"receiveBytes":%d,"maxMessage":%d}}`,
			gid, port, qpn, psn, mtu, credits, receiveBytes, maxMessage)
		if len(body) > 4096 {
			return
		}
		accept := append([]byte("MLRB\x00\x02\x03\x00"), byte(len(body)>>8), byte(len(body)))
		if _, err := nc.Write(append(hello, append(accept, body...)...)); err != nil {
			t.Fatal(err)
		}
		if _, err := bootstrap.Expect[*bootstrap.Offer](nc); err != nil {
			t.Fatal(err)
		}
		_, err = bootstrap.Expect[*bootstrap.Ready](nc)
		if err != nil && !strings.Contains(err.Error(), "refused the connection") {
			t.Fatalf("neither refused nor ready: %v", err)
		}
		_, _ = nc.Write(then)
		nc.Close()
	})
}
