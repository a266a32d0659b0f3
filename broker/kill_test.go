package broker_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/internal/transports"
	"github.com/millrace/millrace/serialize"
)

// killedBrokerDir makes the test binary a broker over that directory, listening at
// killedBrokerURL.
const (
	killedBrokerDir = "MILLRACE_TEST_BROKER_DIR"
	killedBrokerURL = "MILLRACE_TEST_BROKER_URL"
)

func runKilledBroker(dir string) {
	fail := func(err error) {
		fmt.Println("error", err)
		os.Exit(1)
	}
	url := os.Getenv(killedBrokerURL)
	b, err := transports.Backends(url)
	if err != nil {
		fail(err)
	}
	s, err := broker.NewServer(broker.Config{DataDir: dir, Listen: []string{url}, Backends: b, SegmentBytes: 256 << 10})
	if err != nil {
		fail(err)
	}
	if err := s.Start(); err != nil {
		fail(err)
	}
	fmt.Println("ready", s.URLs()[0])
	_, _ = os.Stdin.Read(make([]byte, 1)) // until the test ends, if it does not kill
}

// startKillable runs a broker as a process of its own.
func startKillable(t *testing.T, dir, url string) (cmd *exec.Cmd, at string) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), killedBrokerDir+"="+dir, killedBrokerURL+"="+url)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	first, err := bufio.NewReader(out).ReadString('\n')
	at, ok := strings.CutPrefix(strings.TrimSpace(first), "ready ")
	if err != nil || !ok {
		t.Fatalf("the broker said %q, %v", first, err)
	}
	return cmd, at
}

// A broker killed with SIGKILL while it is produced to has, when it is started
// again, every record that was acknowledged, at its offset, and none twice.
func TestKill(t *testing.T) {
	for _, scheme := range schemes {
		t.Run(scheme, func(t *testing.T) { killOften(t, scheme) })
	}
}

// unansweredLines is how many lines are on their way when the broker is killed, and
// bounds what fails behind them; each is read again after each kill.
const unansweredLines = 5000

func killOften(t *testing.T, scheme string) {
	dir := t.TempDir()
	cmd, url := startKillable(t, dir, scheme+"://127.0.0.1:0")
	c := connect(t, broker.ClientConfig{URL: startProxy(t, broker.ProxyConfig{Broker: url}).URLs()[0]})
	acked := map[int64]int{} // line by offset
	sent := 0
	for k := range kills {
		got := newResults()
		p, err := c.Producer("t", got)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(within(t))
		from, ended := sent, make(chan error, 1)
		need := 200 + 977*k%3000
		go func() {
			for sent-from < need+unansweredLines {
				r := line(sent)
				if err := p.Append(ctx, &r, uint64(sent)); err != nil {
					ended <- err
					return
				}
				sent++
			}
			<-ctx.Done()
			ended <- ctx.Err()
		}()
		if err := got.wait(within(t), need); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		stop()
		mustFail(t, <-ended, context.Canceled)
		p.Close()
		if err := got.wait(within(t), sent-from); err != nil {
			t.Fatalf("after kill %d: %v", k, err)
		}
		for token, offset := range got.offsets {
			if before, dup := acked[offset]; dup {
				t.Fatalf("offset %d was acknowledged for lines %d and %d", offset, before, token)
			}
			acked[offset] = int(token)
		}
		for _, err := range got.errs {
			if !errors.Is(err, wire.OutcomeUnknown) && !errors.Is(err, wire.BrokerUnreachable) {
				t.Fatalf("a record failed with %v", err)
			}
		}
		cmd, _ = startKillable(t, dir, url)
		waitForLink(t, c)
		checkAcked(t, c, acked)
	}
	t.Logf("%d kills: %d lines sent, %d acknowledged, all there", kills, sent, len(acked))
}

func waitForLink(t *testing.T, c *broker.Client) {
	t.Helper()
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		_, _, err := c.Offsets(within(t), "t")
		if err == nil {
			return
		}
		if !errors.Is(err, wire.BrokerUnreachable) && !errors.Is(err, wire.OutcomeUnknown) || time.Since(start) > 20*time.Second {
			t.Fatal(err)
		}
	}
}

// checkAcked reads the whole topic: each acknowledged line is at its offset, and
// no line is there twice.
func checkAcked(t *testing.T, c *broker.Client, acked map[int64]int) {
	t.Helper()
	_, latest, err := c.Offsets(within(t), "t")
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]uint64{}
	missing := len(acked)
	err = c.Consume(within(t), "t", 0, func(o uint64, r *serialize.Record) error {
		i := int(r.Timestamp - 1_700_000_000_000)
		want := line(i)
		if !sameRecord(r, &want) {
			return fmt.Errorf("offset %d is not line %d", o, i)
		}
		if before, dup := found[i]; dup {
			return fmt.Errorf("line %d is at offsets %d and %d", i, before, o)
		}
		found[i] = o
		if want, ok := acked[int64(o)]; ok {
			if want != i {
				return fmt.Errorf("line %d is at offset %d, where line %d was acknowledged", i, o, want)
			}
			missing--
		}
		if o+1 == latest {
			return broker.ErrStop
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if missing != 0 {
		t.Fatalf("%d acknowledged lines are not there", missing)
	}
}
