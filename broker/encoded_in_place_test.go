//go:build !invariants

package broker_test

import (
	"crypto/rand"
	"testing"

	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/internal/transports"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/serialize"
)

// arrived takes batches in, and says what they are.
type arrived struct {
	netpoll.BaseHandler
	records chan int // of a batch; -1 if it does not open
}

func (a arrived) OnMessages(_ *netpoll.Conn, ms []netpoll.Message) {
	for i := range ms {
		batch, err := serialize.Open(ms[i].Data)
		if err != nil {
			a.records <- -1
			continue
		}
		a.records <- batch.Len()
	}
}

// runLoop runs a loop of its own over pool.
func runLoop(t *testing.T, url string, pool *hugepages.Pool) *netpoll.Loop {
	t.Helper()
	backends, err := transports.Backends(url)
	if err != nil {
		t.Fatal(err)
	}
	l, err := netpoll.NewLoop(netpoll.Options{Backends: backends, Pool: pool})
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = l.Run() }()
	t.Cleanup(func() {
		if err := l.Shutdown(within(t)); err != nil {
			t.Error(err)
		}
		<-l.Done()
	})
	return l
}

// A batch encoded straight into a buffer of the loop, whose memory the transport
// has registered, is sent from there: encoding is the one copy of ours, by a
// Builder and by an Encoder with a worker alike.
func TestABatchIsSentFromWhereItWasEncoded(t *testing.T) {
	encoder, err := serialize.NewEncoder(2)
	if err != nil {
		t.Fatal(err)
	}
	defer encoder.Close()
	builder, err := serialize.NewBuilder(4)
	if err != nil {
		t.Fatal(err)
	}
	encode := map[string]func(dst []byte, rs []serialize.Record) ([]byte, error){
		"encoder": encoder.Encode,
		"builder": func(dst []byte, rs []serialize.Record) ([]byte, error) {
			builder.Reset(dst)
			for i := range rs {
				if err := builder.Append(&rs[i]); err != nil {
					return nil, err
				}
			}
			return builder.Finish(), nil
		},
	}
	for _, scheme := range schemes {
		t.Run(scheme, func(t *testing.T) {
			c := newCopies(t)
			url := scheme + "://127.0.0.1:0"
			here, there := memory(t, 16<<20), memory(t, 16<<20)
			in := arrived{records: make(chan int, 1)}
			listener, err := runLoop(t, url, there).Listen(url, in)
			if err != nil {
				t.Fatal(err)
			}
			out := runLoop(t, url, here)
			conn, err := out.Dial(within(t), listener.URL(), netpoll.BaseHandler{})
			if err != nil {
				t.Fatal(err)
			}
			for name, encode := range encode {
				message := make([]byte, 500)
				_, _ = rand.Read(message)
				records := []serialize.Record{{Value: []byte("first")}, {Value: message}, {Value: []byte("last")}}
				failed := make(chan error, 1)
				err := out.Do(func() {
					buf, err := conn.Alloc(4096)
					if err != nil {
						failed <- err
						return
					}
					batch, err := encode(buf.Bytes(), records)
					if err == nil {
						buf.Resize(len(batch))
						err = conn.Send(buf)
					}
					if err != nil {
						buf.Release()
					}
					failed <- err
				})
				if err == nil {
					err = <-failed
				}
				if err != nil {
					t.Fatal(err)
				}
				if n := <-in.records; n != len(records) {
					t.Fatalf("%s: a batch of %d records arrived", name, n)
				}
				at := c.find(message)
				if n := c.count(at, here); n != 1 {
					t.Errorf("%s: %d copies on the way out, want 1", name, n)
				}
				if n := c.count(at, there); n != 1 {
					t.Errorf("%s: the receiver has it in %d places, want the one where it was received", name, n)
				}
			}
		})
	}
}
