package softroce

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// requesterTables is what a requester does with what comes back (IBTA vol. 1, §9.7.5
// and tables 45 and 54). A request of three packets (an atomic: of one) and a SEND of
// one are under way: PSNs 0 1 2 and 3 (0 and 3: the atomic is followed by a SEND of
// three). Columns are PSNs; -1 was acknowledged before, 4 was not sent.
//
// Cells: stale, drop: ignored and counted so; uN: everything before PSN N is
// acknowledged, what completes with it completes; uN bM: and what is from M on is sent
// again; uN wM: likewise, after the time that the NAK says; uN fail STATUS: the pair
// ends, and what is from N on comes back with STATUS and flushes.
var requesterTables = map[string]string{
	"SEND": `
                 -1      0          1          2          3          4
ACK              stale   u1         u2         u3         u4         drop
NAK60            stale   u0,b0      u1,b1      u2,b2      u3,b3      drop
RNR              stale   u0,w0      u1,w1      u2,w2      u3,w3      drop
NAK61            stale   u0,inv     u1,inv     u2,inv     u3,inv     drop
NAK62            stale   u0,acc     u1,acc     u2,acc     u3,acc     drop
NAK63            stale   u0,op      u1,op      u2,op      u3,op      drop
NAK64            stale   u0,rd      u1,rd      u2,rd      u3,rd      drop
NAK65            stale   drop       drop       drop       drop       drop
KIND40           stale   drop       drop       drop       drop       drop
FIRST            stale   drop       drop       drop       drop       drop
MIDDLE           stale   drop       drop       drop       drop       drop
LAST             stale   drop       drop       drop       drop       drop
ONLY             stale   drop       drop       drop       drop       drop
ATOMIC           stale   drop       drop       drop       drop       drop
`,
	// An answer that was passed over is lost: its request goes out again.
	"READ": `
                 -1      0          1          2          3          4
ACK              stale   u0,b0      u0,b0      u0,b0      u0,b0      drop
NAK60            stale   u0,b0      u0,b0      u0,b0      u0,b0      drop
RNR              stale   u0,w0      u0,w0      u0,w0      u0,w0      drop
NAK61            stale   u0,inv     u0,inv     u0,inv     u0,inv     drop
NAK62            stale   u0,acc     u0,acc     u0,acc     u0,acc     drop
NAK63            stale   u0,op      u0,op      u0,op      u0,op      drop
NAK64            stale   u0,rd      u0,rd      u0,rd      u0,rd      drop
NAK65            stale   drop       drop       drop       drop       drop
FIRST            stale   u1         u0,b0      u0,b0      u0,b0      drop
MIDDLE           stale   u0,bad     u0,b0      u0,b0      u0,b0      drop
LAST             stale   u0,bad     u0,b0      u0,b0      u0,b0      drop
ONLY             stale   u0,bad     u0,b0      u0,b0      u0,b0      drop
ATOMIC           stale   u0,bad     u0,b0      u0,b0      u0,b0      drop
SHORT            stale   u0,bad     u0,b0      u0,b0      u0,b0      drop
NAKed            stale   u0,bad     u0,b0      u0,b0      u0,b0      drop
`,
	// After the FIRST of its answer.
	"READ begun": `
                 -1      0          1          2          3          4
ACK              stale   stale      u1,b1      u1,b1      u1,b1      drop
NAK60            stale   stale      u1,b1      u1,b1      u1,b1      drop
NAK62            stale   stale      u1,acc     u1,acc     u1,acc     drop
FIRST            stale   stale      u2         u1,b1      u1,b1      drop
MIDDLE           stale   stale      u2         u1,b1      u1,b1      drop
LAST             stale   stale      u1,bad     u1,b1      u1,b1      drop
ONLY             stale   stale      u1,bad     u1,b1      u1,b1      drop
`,
	// Before the end of its answer.
	"READ ending": `
                 -1      0          1          2          3          4
ACK              stale   stale      stale      u2,b2      u2,b2      drop
FIRST            stale   stale      stale      u2,bad     u2,b2      drop
MIDDLE           stale   stale      stale      u2,bad     u2,b2      drop
LAST             stale   stale      stale      u3         u2,b2      drop
ONLY             stale   stale      stale      u3         u2,b2      drop
SHORT            stale   stale      stale      u2,bad     u2,b2      drop
`,
	"ATOMIC": `
                 -1      0          1          2          3          4
ACK              stale   u0,b0      u0,b0      u0,b0      u0,b0      drop
NAK60            stale   u0,b0      u0,b0      u0,b0      u0,b0      drop
RNR              stale   u0,w0      u0,w0      u0,w0      u0,w0      drop
NAK61            stale   u0,inv     u0,inv     u0,inv     u0,inv     drop
NAK62            stale   u0,acc     u0,acc     u0,acc     u0,acc     drop
FIRST            stale   u0,bad     u0,b0      u0,b0      u0,b0      drop
ONLY             stale   u0,bad     u0,b0      u0,b0      u0,b0      drop
ATOMIC           stale   u1         u0,b0      u0,b0      u0,b0      drop
NAKed            stale   u0,bad     u0,b0      u0,b0      u0,b0      drop
`,
}

var cellStatus = map[string]rdma.Status{
	"inv": rdma.RemoteInvalidReq, "acc": rdma.RemoteAccessError, "op": rdma.RemoteOpError, "rd": rdma.RemoteInvalidRD, "bad": rdma.BadResponse,
}

// requesterRig has requests under way to which hand-made packets are the answer.
type requesterRig struct {
	*injector
	q *queuePair
}

func newRequesterRig(t *testing.T, state string) *requesterRig {
	in := newInjectorWith(t, options{open: 4096, rdAtomic: 4})
	in.b.dev.link = &sentBy{Link: in.b.dev.link}
	r := &requesterRig{in, in.b.qp.(*queuePair)}
	at, key := in.a.openMR.RemoteAddr(in.a.open), in.a.openMR.RKey
	first := rdma.SendWR{ID: 1, Data: in.b.sendSlot(1)[:2*tableMTU+40], RemoteAddr: at, RKey: key, Signaled: true}
	second := rdma.SendWR{ID: 2, Data: in.b.sendSlot(2)[:10], Signaled: true}
	switch strings.Fields(state)[0] {
	case "READ":
		first.Op = rdma.OpRead
	case "ATOMIC":
		first.Op, first.Data, second.Data = rdma.OpFetchAdd, first.Data[:8], in.b.sendSlot(2)[:2*tableMTU+40]
	}
	if _, err := in.b.qp.PostSend([]rdma.SendWR{first, second}); err != nil {
		t.Fatal(err)
	}
	in.b.dev.Progress(in.net.Now())
	for i, op := range map[string][]string{"READ begun": {"FIRST"}, "READ ending": {"FIRST", "MIDDLE"}}[state] {
		r.injectTo(op, int32(i))
	}
	return r
}

// injectTo delivers what a table calls kind, at PSN at.
func (r *requesterRig) injectTo(kind string, at int32) {
	op, syn, n := roce.Acknowledge, roce.SyndromeACK, 0
	var code int
	switch {
	case kind == "RNR":
		syn = roce.SyndromeRNR | 5
	case kind == "KIND40":
		syn = 0x40
	case kind == "FIRST":
		op, n = roce.ReadResponseFirst, tableMTU
	case kind == "MIDDLE":
		op, n = roce.ReadResponseMiddle, tableMTU
	case kind == "LAST":
		op, n = roce.ReadResponseLast, 40
	case kind == "ONLY":
		op, n = roce.ReadResponseOnly, 40
	case kind == "SHORT" && at == 2:
		op, n = roce.ReadResponseLast, 39
	case kind == "SHORT":
		op, n = roce.ReadResponseFirst, tableMTU-4
	case kind == "NAKed" && r.q.sq[0].op == rdma.OpRead:
		op, n, syn = roce.ReadResponseFirst, tableMTU, roce.NAKRemoteAccess
	case kind == "ATOMIC", kind == "NAKed":
		op = roce.AtomicAcknowledge
		if kind == "NAKed" {
			syn = roce.NAKRemoteAccess
		}
	default:
		if k, _ := fmt.Sscanf(kind, "NAK%x", &code); k == 1 {
			syn = roce.Syndrome(code)
		}
	}
	var ext []byte
	if op.Props()&roce.HasAETH != 0 {
		ext = []byte{byte(syn), 0, 0, 1}
	}
	if op == roce.AtomicAcknowledge {
		ext = binary.BigEndian.AppendUint64(ext, 0x0102030405060708)
	}
	pad := -n & 3
	b := make([]byte, roce.BTHLen+len(ext)+n+pad)
	copy(b[roce.BTHLen:], ext)
	for i := range n {
		b[roce.BTHLen+len(ext)+i] = byte(at) + 1
	}
	(*roce.BTH)(b).Put(op, pad, r.q.num, false, roce.PSNAdd(r.q.startPSN, uint32(at)))
	r.deliver(r.seal(b))
	r.b.dev.receive(r.net.Now()) // without sending: next says what is sent again
}

func TestRequesterTables(t *testing.T) {
	for state, table := range requesterTables {
		tableRows(t, table, func(row, column, want string) {
			t.Run(state+"/"+row+"/"+column, func(t *testing.T) {
				r := newRequesterRig(t, state)
				q, before := r.q, r.b.dev.Stats()
				una, next := q.una, q.next
				var at int32
				fmt.Sscan(column, &at)
				r.injectTo(row, at)
				s := r.b.dev.Stats()
				rel := func(psn uint32) int32 { return roce.PSNDiff(psn, q.startPSN) }
				got := ""
				wcs := r.b.poll()
				switch moved := fmt.Sprintf("u%d", rel(q.una)); {
				case s.StaleAcks == before.StaleAcks+1 && q.una == una && q.next == next:
					got = "stale"
				case s.DropAck == before.DropAck+1 && q.una == una && q.next == next:
					got = "drop"
				case q.state == rdma.QPError:
					got = moved + ",?"
					for name, st := range cellStatus {
						for _, wc := range wcs {
							if wc.Status == st {
								got = moved + "," + name
							}
						}
					}
				case q.waitRNR:
					got = fmt.Sprintf("%s,w%d", moved, rel(q.next))
				case q.next != next:
					got = fmt.Sprintf("%s,b%d", moved, rel(q.next))
				default:
					got = moved
				}
				if got != want {
					t.Fatalf("%s, want %s\n%+v", got, want, s)
				}
				r.checkCompletions(t, wcs)
			})
		})
	}
}

// checkCompletions compares what completed with what is acknowledged: in order, each
// once, and an error only where the pair ended.
func (r *requesterRig) checkCompletions(t *testing.T, wcs []rdma.WC) {
	t.Helper()
	var sends []rdma.WC
	for _, wc := range wcs {
		if !wc.Op.IsRecv() {
			sends = append(sends, wc)
		}
	}
	ends := [...]uint32{r.q.sq[0].end, r.q.sq[1].end}
	failed := r.q.state == rdma.QPError
	for i, end := range ends {
		want := rdma.Status(255) // none yet
		switch acked := roce.PSNDiff(r.q.una, end) >= 0; {
		case acked:
			want = rdma.Success
		case failed && (i == 0 || roce.PSNDiff(r.q.una, ends[0]) >= 0):
			want = sends[i].Status
			if want == rdma.Success || want == rdma.FlushError {
				t.Errorf("request %d ended with %v", i, want)
			}
		case failed:
			want = rdma.FlushError
		}
		if want == 255 {
			if len(sends) > i {
				t.Errorf("request %d completed: %+v", i, sends[i])
			}
			continue
		}
		if len(sends) <= i || sends[i].ID != uint64(i+1) || sends[i].Status != want {
			t.Errorf("request %d: completions %+v, want status %v", i, sends, want)
		}
	}
}

// TestImpliedNAKOnce: all that is under way behind a lost answer shows its loss; its
// request goes out again once.
func TestImpliedNAKOnce(t *testing.T) {
	r := newRequesterRig(t, "READ")
	for _, at := range []int32{1, 2} {
		r.injectTo("MIDDLE", at)
		r.b.dev.Progress(r.net.Now())
	}
	r.injectTo("ACK", 3)
	r.b.dev.Progress(r.net.Now())
	if s := r.b.dev.Stats(); s.ImpliedNAKs != 1 || s.Retransmitted != 2 { // the READ and the SEND
		t.Errorf("%+v", s)
	}
	for i, op := range []string{"FIRST", "MIDDLE", "LAST"} {
		r.injectTo(op, int32(i))
	}
	r.injectTo("ACK", 3)
	r.checkCompletions(t, r.b.poll())
	for i, b := range r.b.sendSlot(1)[:2*tableMTU+40] {
		if int(b) != i/tableMTU+1 {
			t.Fatalf("byte %d is %d", i, b)
		}
	}
}
