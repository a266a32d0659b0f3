package transports_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/millrace/millrace/dpdk/afxdp"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/internal/transports"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/netpoll/looptest"
)

// The ends of a connection between network namespaces are processes of their own:
// a namespace belongs to a thread, and Go moves goroutines between them.
const roleVariable = "MILLRACE_TEST_ROLE"

func TestMain(m *testing.M) {
	var err error
	switch role, url, _ := strings.Cut(os.Getenv(roleVariable), " "); role {
	case "":
		os.Exit(m.Run())
	case "serve":
		err = serve(url)
	case "call":
		err = call(url)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

func newLoop(url string) (*netpoll.Loop, error) {
	backends, err := transports.Backends(url)
	if err != nil {
		return nil, err
	}
	arena, err := hugepages.NewArena(hugepages.ArenaOptions{Bytes: 32 << 20})
	if err != nil {
		return nil, err
	}
	return netpoll.NewLoop(netpoll.Options{Pool: hugepages.NewPool(arena), Backends: backends})
}

type echoer struct{ netpoll.BaseHandler }

func (echoer) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		if err := reply(c, &ms[i]); err != nil {
			c.Close(err)
		}
	}
}

func reply(c *netpoll.Conn, m *netpoll.Message) error {
	b, err := c.Alloc(m.Len())
	if err != nil {
		return err
	}
	n := copy(b.Bytes(), m.Data)
	for _, s := range m.Rest {
		n += copy(b.Bytes()[n:], s.Data)
	}
	if err = c.Send(b); err != nil {
		b.Release()
	}
	return err
}

func serve(url string) error {
	l, err := newLoop(url)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() {
		ln, err := l.Listen(url, echoer{})
		if err != nil {
			failed <- err
			l.Stop()
			return
		}
		fmt.Println("ready", ln.URL())
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the parent closes it
		l.Stop()
	}()
	err = l.Run()
	select {
	case e := <-failed:
		return e
	default:
		return err
	}
}

// call sends messages of many sizes and wants them back.
func call(url string) error {
	l, err := newLoop(url)
	if err != nil {
		return err
	}
	ran := make(chan error, 1)
	go func() { ran <- l.Run() }()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	a := looptest.NewCollector(100)
	c, err := l.Dial(ctx, url, a)
	if err != nil {
		return err
	}
	fmt.Println(c.Transport().Device)
	for i := range 60 {
		want := bytes.Repeat([]byte{byte(i), byte(i >> 1), 7}, 1+i*i*11)
		sent := make(chan error, 1)
		err := l.Do(func() {
			b, err := c.Alloc(len(want))
			if err == nil {
				copy(b.Bytes(), want)
				if err = c.Send(b); err != nil {
					b.Release()
				}
			}
			sent <- err
		})
		if err = errors.Join(err, <-sent); err != nil {
			return err
		}
		select {
		case got := <-a.Got:
			if !bytes.Equal(got, want) {
				return fmt.Errorf("message %d: %d other bytes came back", i, len(got))
			}
		case err := <-a.Closed:
			return fmt.Errorf("closed: %w", err)
		case <-ctx.Done():
			return fmt.Errorf("message %d did not come back", i)
		}
	}
	l.Stop()
	return <-ran
}

// Two namespaces joined by a veth pair, an AF_XDP port at one end or at both.
func TestAFXDPBetweenNamespaces(t *testing.T) {
	ip := func(t *testing.T, args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Skipf("no network namespaces: ip %s: %v: %s (needs root and iproute2)", strings.Join(args, " "), err, out)
		}
	}
	if n, err := afxdp.Attach("lo", afxdp.Match{All: true}); err != nil {
		t.Skipf("no AF_XDP here: %v", err)
	} else if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, listen, dial, device string }{
		{"both ends", "dpdk://10.77.0.1:7000?port=afxdp:v0", "dpdk://10.77.0.1:7000?port=afxdp:v1", "afxdp:v1"},
		{"one end, packet sockets at the other", "dpdk://10.77.0.1:7000?port=afxdp:v0", "rdma://10.77.0.1:7000?device=softroce%2Bpacket:v1", "softroce+packet"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := fmt.Sprintf("mr-tx-%da", os.Getpid()), fmt.Sprintf("mr-tx-%db", os.Getpid())
			for _, ns := range []string{a, b} {
				ip(t, "netns", "add", ns)
				defer func() { _ = exec.Command("ip", "netns", "del", ns).Run() }()
			}
			ip(t, "-n", a, "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", b)
			ip(t, "-n", a, "addr", "add", "10.77.0.1/24", "dev", "v0")
			ip(t, "-n", b, "addr", "add", "10.77.0.2/24", "dev", "v1")
			ip(t, "-n", a, "link", "set", "v0", "up")
			ip(t, "-n", b, "link", "set", "v1", "up")

			server := exec.Command("ip", "netns", "exec", a, os.Args[0])
			server.Env = append(os.Environ(), roleVariable+"=serve "+tc.listen)
			server.Stderr = os.Stderr
			stop, err := server.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := server.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := server.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				stop.Close()
				if err := server.Wait(); err != nil {
					t.Errorf("server: %v", err)
				}
			}()
			line := make([]byte, 500)
			n, _ := out.Read(line)
			if !bytes.HasPrefix(line[:n], []byte("ready ")) {
				t.Fatalf("server: %s", line[:n])
			}
			client := exec.Command("ip", "netns", "exec", b, os.Args[0])
			client.Env = append(os.Environ(), roleVariable+"=call "+tc.dial)
			got, err := client.CombinedOutput()
			if err != nil || strings.TrimSpace(string(got)) != tc.device {
				t.Errorf("client: %v: %s", err, got)
			}
		})
	}
}
