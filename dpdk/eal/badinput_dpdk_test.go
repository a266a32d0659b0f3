//go:build dpdk && cgo

package eal_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace/millrace/dpdk/eal"
	"github.com/millrace/millrace/netpoll"
)

// mistake is what a process of its own does wrong: libdpdk starts once in a process.
type mistake struct {
	EAL     []string // arguments of Init
	Devices []string // NAME or NAME,ARGS of virtual devices; of a card without net_
}

const mistakeEnv = "MILLRACE_EAL_MISTAKE"

func init() { eal.MistakeMain = mistakeMain }

// mistakeMain opens what it is told while a TCP connection of the same process carries
// messages, and prints the first error.
func mistakeMain(arg string) int {
	var m mistake
	if err := json.Unmarshal([]byte(arg), &m); err != nil {
		fmt.Println(err)
		return 2
	}
	l, c, got, err := tcpEcho()
	if err != nil {
		fmt.Println("before:", err)
		return 2
	}
	if err := roundTrip(l, c, got); err != nil {
		fmt.Println("before:", err)
		return 2
	}
	err = eal.Init(m.EAL...)
	for _, d := range m.Devices {
		if err != nil {
			break
		}
		name, args, _ := strings.Cut(d, ",")
		if strings.HasPrefix(name, "net_") {
			_, err = eal.NewVdev(name, args, 1, eal.Options{})
		} else {
			_, err = eal.Open(name, 1, eal.Options{})
		}
	}
	if rerr := roundTrip(l, c, got); rerr != nil {
		fmt.Println("after:", rerr)
		return 2
	}
	l.Stop()
	<-l.Done()
	fmt.Print(err)
	return 0
}

type echoBack struct{ netpoll.BaseHandler }

func (echoBack) OnMessages(c *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		if b, err := c.Alloc(ms[i].Len()); err != nil {
			c.Close(err)
		} else if copy(b.Bytes(), ms[i].Data); c.Send(b) != nil {
			b.Release()
		}
	}
}

type tell struct {
	netpoll.BaseHandler
	got chan int
}

func (h tell) OnMessages(_ *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		h.got <- ms[i].Len()
	}
}

func tcpEcho() (*netpoll.Loop, *netpoll.Conn, chan int, error) {
	l, err := netpoll.NewLoop(netpoll.Options{})
	if err != nil {
		return nil, nil, nil, err
	}
	go l.Run()
	ln, err := l.Listen("tcp://127.0.0.1:0", echoBack{})
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	got := make(chan int, 1)
	c, err := l.Dial(ctx, ln.URL(), tell{got: got})
	return l, c, got, err
}

func roundTrip(l *netpoll.Loop, c *netpoll.Conn, got chan int) error {
	sent := errors.New("the loop has ended")
	if err := l.Do(func() {
		b, err := c.Alloc(100)
		if sent = err; err == nil {
			sent = c.Send(b)
		}
	}); err != nil || sent != nil {
		return errors.Join(err, sent)
	}
	select {
	case n := <-got:
		if n != 100 {
			return fmt.Errorf("%d bytes came back", n)
		}
		return nil
	case <-time.After(20 * time.Second):
		return errors.New("no echo")
	}
}

// commit runs the mistake as another user, if uid is not 0, and returns the one line
// that it leads to. Nothing else may be said, on any output.
func (m mistake) commit(t *testing.T, uid uint32) string {
	t.Helper()
	arg, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	if uid != 0 {
		// The folder of a test's program is its user's alone; an open file is not.
		f, err := os.Open(exe)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd = exec.Command("/proc/self/fd/3")
		cmd.ExtraFiles = []*os.File{f}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		cmd.Dir = "/"
	}
	cmd.Env = append(os.Environ(), mistakeEnv+"="+string(arg), "TMPDIR=/tmp")
	var out, noise bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &noise
	if err := cmd.Run(); err != nil {
		t.Fatalf("the process ended with %v: %s%s", err, out.String(), noise.String())
	}
	if noise.Len() > 0 || strings.Count(strings.TrimSpace(out.String()), "\n") > 0 {
		t.Errorf("libdpdk's output was not kept off the process's: %s%s", out.String(), noise.String())
	}
	return out.String()
}

const nobody = 65534

// A mistake leads to one line that says what, why and how to mend it; the process and
// its other connections go on.
func TestMistakes(t *testing.T) {
	needEAL(t)
	for _, tc := range []struct {
		name string
		m    mistake
		uid  uint32
		want []string
	}{
		{"no such EAL option", mistake{EAL: []string{"--no-such-option"}}, 0, []string{"rte_eal_init", "--no-such-option", "eal= of the address"}},
		{"an EAL option's value", mistake{EAL: []string{"--lcores=banana"}}, 0, []string{"rte_eal_init", "banana", "eal= of the address"}},
		{"missing driver", mistake{Devices: []string{"net_nosuch0"}}, 0, []string{"rte_eal_hotplug_add net_nosuch0", "driver", "millrace doctor"}},
		{"a driver's argument", mistake{Devices: []string{"net_af_packet0,iface=nonesuch9"}}, 0, []string{"net_af_packet0", "nonesuch9", "after the comma"}},
		{"busy device", mistake{Devices: []string{"net_ring0", "net_ring0"}}, 0, []string{"net_ring0", "another number"}},
		{"no such card", mistake{EAL: []string{"--allow", "0000:ff:1f.7"}, Devices: []string{"0000:ff:1f.7"}}, 0, []string{"0000:ff:1f.7", "vfio-pci"}},
		{"no permission for a socket", mistake{Devices: []string{"net_af_packet0,iface=lo"}}, nobody, []string{"net_af_packet0", "CAP_NET_RAW"}},
		{"no permission for a tap", mistake{Devices: []string{"net_tap0"}}, nobody, []string{"net_tap0", "CAP_NET_ADMIN"}},
		{"no huge pages", mistake{EAL: []string{"--in-memory"}}, 0, []string{"rte_eal_init", "huge", "millrace doctor --fix"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.uid != 0 && os.Getuid() != 0 {
				t.Skip("only root can become somebody else")
			}
			got := tc.m.commit(t, tc.uid)
			t.Log(got)
			if tc.name == "no huge pages" && got == "<nil>" {
				t.Skip("this machine has huge pages")
			}
			for _, w := range tc.want {
				if !strings.Contains(got, w) {
					t.Errorf("%q does not say %q", got, w)
				}
			}
		})
	}
}
