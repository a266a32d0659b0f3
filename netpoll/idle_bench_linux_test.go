package netpoll

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What idling costs and what it costs to be woken, against an ordinary Go server
// with blocking reads. The server is a process of its own on a CPU of its own, the
// client spins on another and sends by the clock, so that all that differs is the
// server's.

const (
	idleServerEnv = "MILLRACE_TEST_IDLE_SERVER" // policy, or blocking
	idleProcsEnv  = "MILLRACE_TEST_IDLE_PROCS"  // GOMAXPROCS of the server
)

// idleServer is the child: it serves until its input ends.
func idleServer(policy string) error {
	if n, err := strconv.Atoi(os.Getenv(idleProcsEnv)); err == nil {
		runtime.GOMAXPROCS(n)
	}
	var url string
	if policy == "blocking" {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		url = "tcp://" + ln.Addr().String()
		go blockingEcho(ln)
	} else {
		idle, err := ParseIdlePolicy(policy)
		if err != nil {
			return err
		}
		l, err := NewLoop(Options{Idle: idle})
		if err != nil {
			return err
		}
		ln, err := l.Listen("tcp://127.0.0.1:0", &plainEcho{})
		if err != nil {
			return err
		}
		url = ln.URL()
		go func() { _ = l.Run() }()
	}
	fmt.Println(url)
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// blockingEcho is what an ordinary Go program does.
func blockingEcho(ln net.Listener) {
	for {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer nc.Close()
			if _, err := Handshake(nc, 1<<20); err != nil {
				return
			}
			r := bufio.NewReader(nc)
			buf := make([]byte, 1<<16)
			for {
				if _, err := io.ReadFull(r, buf[:4]); err != nil {
					return
				}
				n := 4 + int(binary.BigEndian.Uint32(buf))
				if _, err := io.ReadFull(r, buf[4:n]); err != nil {
					return
				}
				if _, err := nc.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
	}
}

// plainEcho sends back what comes, and counts on not being overrun.
type plainEcho struct{ BaseHandler }

func (plainEcho) OnMessages(c *Conn, ms []Message) {
	for i := range ms {
		if err := sendCopy(c, ms[i].Data); err != nil {
			c.Close(err)
			return
		}
	}
}

// startIdleServer starts the child on CPU 1 and moves this thread to CPU 0.
func startIdleServer(b *testing.B, policy string, procs int) (pid int, addr string) {
	if runtime.NumCPU() < 2 {
		b.Skip("needs two CPUs: one for the server, one for the client that spins")
	}
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	runtime.LockOSThread()
	b.Cleanup(runtime.UnlockOSThread)
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		b.Fatal(err)
	}
	pin := func(cpu int) {
		var set unix.CPUSet
		set.Set(cpu)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			b.Skip("cannot choose a CPU: ", err)
		}
	}
	pin(1)
	b.Cleanup(func() { _ = unix.SchedSetaffinity(0, &all) })
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), idleServerEnv+"="+policy, idleProcsEnv+"="+strconv.Itoa(procs))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil { // the child inherits the CPU
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = stdin.Close(); _ = cmd.Wait() })
	pin(0)
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		b.Fatal(err)
	}
	return cmd.Process.Pid, strings.TrimPrefix(strings.TrimSpace(line), "tcp://")
}

func processCPU(b *testing.B, pid int) time.Duration {
	// MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED), include/linux/posix-timers_types.h
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^uint32(pid)<<3|2), &ts); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// BenchmarkIdle sends a message of 128 B every so often. Besides the round trip it
// reports the server's CPU time for each message.
func BenchmarkIdle(b *testing.B) {
	for _, gap := range []time.Duration{20 * time.Microsecond, 100 * time.Microsecond, time.Second} {
		b.Run("gap="+gap.String(), func(b *testing.B) {
			for _, server := range []struct {
				policy string
				procs  int
			}{{"blocking", 1}, {"blocking", 2}, {"balanced", 1}, {"balanced", 2}, {"efficient", 2}, {"latency", 1}} {
				b.Run(fmt.Sprintf("%s/procs=%d", server.policy, server.procs), func(b *testing.B) {
					benchmarkIdle(b, gap, server.policy, server.procs)
				})
			}
		})
	}
}

func benchmarkIdle(b *testing.B, gap time.Duration, policy string, procs int) {
	pid, addr := startIdleServer(b, policy, procs)
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	if _, err := Handshake(nc, 1<<20); err != nil {
		b.Fatal(err)
	}
	raw, err := nc.(*net.TCPConn).SyscallConn()
	if err != nil {
		b.Fatal(err)
	}
	msg := make([]byte, 132)
	binary.BigEndian.PutUint32(msg, 128)
	in := make([]byte, len(msg))
	rts := make([]time.Duration, 0, b.N)
	if err := raw.Control(func(s uintptr) {
		fd := int(s)
		trip := func() time.Duration {
			began := time.Now()
			if _, err := unix.Write(fd, msg); err != nil {
				b.Fatal(err)
			}
			for got := 0; got < len(msg); {
				n, err := rawRead(fd, in)
				if err != nil && err != unix.EAGAIN && err != unix.EINTR {
					b.Fatal(err)
				}
				got += n
			}
			return time.Since(began)
		}
		for range 100 {
			trip()
		}
		next := time.Now()
		cpu := processCPU(b, pid)
		for range b.N {
			next = next.Add(gap)
			if gap > time.Millisecond {
				time.Sleep(time.Until(next) - time.Millisecond)
			}
			for time.Now().Before(next) {
			}
			rts = append(rts, trip())
			if now := time.Now(); now.Sub(next) > gap { // no catching up: the gaps are the point
				next = now
			}
		}
		cpu = processCPU(b, pid) - cpu
		b.ReportMetric(float64(cpu.Nanoseconds())/float64(b.N)/1e3, "server-µs/msg")
	}); err != nil {
		b.Fatal(err)
	}
	slices.Sort(rts)
	at := func(q float64) float64 { return float64(rts[int(q*float64(len(rts)-1))].Nanoseconds()) / 1e3 }
	b.ReportMetric(at(0.5), "p50-µs")
	b.ReportMetric(at(0.99), "p99-µs")
	b.ReportMetric(0, "ns/op")
}
