package softroce

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

const (
	// MaxMessage is the largest message, bytes: that of rdma_rxe.
	MaxMessage = 8 << 20
	// MaxInline is the largest inline payload, bytes.
	MaxInline = 256
	// MaxQPWR is the deepest work queue of a queue pair.
	MaxQPWR = 1 << 14
	// MaxSRQWR is the deepest shared receive queue.
	MaxSRQWR = 1 << 16
	// MaxRdAtomic is how many READs and atomics a queue pair may have under way or
	// accept at once: that of rdma_rxe.
	MaxRdAtomic = 128
	// MaxCQE is the deepest completion queue.
	MaxCQE = 1 << 22
	// MaxQPs is how many queue pairs a device can have: one block of queue pair
	// numbers less number 0.
	MaxQPs = qpnBlock - 1

	qpnBlock = 1 << 12
	// retiredQPNs is how many numbers of closed pairs are not given to new ones while
	// there are others: completions not polled and packets under way carry them.
	retiredQPNs = 256
	burst       = 64 // frames per call to the link
	quantum     = 16 // packets a queue pair may send before the next one has its turn

	// maxWindow is the largest Options.Window: far below half of the PSNs, within
	// which "before" and "after" mean something.
	maxWindow = 1 << 16
)

// ErrClosed refuses operations on a closed device or queue pair.
var ErrClosed = errors.New("softroce: closed")

// ErrTooManyQPs refuses a queue pair beyond MaxQPs.
var ErrTooManyQPs = fmt.Errorf("softroce: the device has its %d queue pairs", MaxQPs)

// Options tune a device. The zero value is right for loopback, veth and memif.
type Options struct {
	// Window is the most packets that a queue pair has in flight; default 128, at
	// least 16, at most 65,536 and the link's Queue (if that is 16 or more).
	Window int
	// AckDelay is how long an acknowledgement that the peer asked for may wait for
	// others to join it; default 200 µs, negative for none. It goes out earlier after 16
	// packets and before the loop sleeps, and never before data that is ready to be
	// sent. One goes along with data if the last one went that long ago or more, five times
	// as long where small messages come dense; what was not asked for goes by itself 4 ms
	// after the packet, or 60 ms where the way is memory of the two ends.
	AckDelay time.Duration
	// PeerTimeout is how long a queue pair with unacknowledged data waits for any
	// progress before it fails with rdma.RetryExceeded, or rdma.RNRRetryExceeded if
	// the peer is alive but has no receive posted; default 3 s.
	PeerTimeout time.Duration
	// RNRDelay is what a peer is asked to wait that finds no receive posted; default
	// 120 µs, rounded up to one of the 31 times that the wire knows, 655.36 ms at most.
	RNRDelay time.Duration
	// RNRRetries is how many such answers without progress a send survives; default: as
	// many as come within PeerTimeout.
	RNRRetries int
	// Unsummed lets queue pairs leave the ICRC out where both ends agree to
	// (rdma.Remote.Unsummed). Only for a link that is memory of the two ends: nothing
	// else notices what the way to the peer damages.
	Unsummed bool

	random func() uint32 // tests choose QPNs and PSNs
}

func (o Options) withDefaults(a LinkAttr) Options {
	if o.Window <= 0 {
		o.Window = 128
	}
	o.Window = max(min(o.Window, a.Queue, maxWindow), minWindow)
	switch {
	case o.AckDelay == 0:
		o.AckDelay = 200 * time.Microsecond
	case o.AckDelay < 0:
		o.AckDelay = 0
	}
	if o.PeerTimeout <= 0 {
		o.PeerTimeout = 3 * time.Second
	}
	if o.RNRDelay <= 0 {
		o.RNRDelay = 120 * time.Microsecond
	}
	if o.random == nil {
		o.random = random
	}
	return o
}

func random() uint32 {
	var b [4]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return binary.LittleEndian.Uint32(b[:])
}

// Device is a RoCEv2 device over a Link. It and everything made from it belong to
// one goroutine.
type Device struct {
	link    Link
	lane    Lane // link, if it is one
	attr    LinkAttr
	opts    Options
	pathMTU int
	closed  bool

	// Transmit frames: tx[txHead:txFill] are filled and not yet taken by the link,
	// tx[txFill:txAlloc] are empty. A link that refuses frames leaves them here.
	tx                      [burst]Frame
	txHead, txFill, txAlloc int
	laneMet                 uint64 // stats.LaneSent at the last refill
	rx                      [burst]Frame

	active              ring         // queue pairs that may have packets to send
	due                 []*queuePair // owe an answer or response now
	later               []*queuePair // owe an acknowledgement that waits, until laterAt at least
	laterAt             int64
	respStarved         bool // the link gave no frame for a response: responses go first next time
	urgent              bool // a response that should not wait for the next Progress
	failed              bool // some queue pair failed since the last Progress
	flush               bool // the loop is about to sleep
	flushable           bool // later has an acknowledgement that was asked for
	blocked             bool // some queue pair waits for room in a completion queue
	starved             bool // the link refused frames in this Progress
	restless            bool // the link's descriptor would not end a sleep
	now                 int64
	nextTimer           int64 // no timer of a queue pair expires before
	armed               int   // queue pairs with a running timer
	ackDelay, peerDelay int64
	rnrSyndrome         roce.Syndrome

	stats Stats

	qpnBase uint32               // first number of the block
	table   [qpnBlock]*queuePair // by number within the block
	live    []*queuePair         // all of them
	retired []uint32             // numbers within the block that were in use last, at most retiredQPNs
	pds     []*domain
	rkeys   map[uint32]*region // by remote key
	events  []rdma.Event       // not yet polled

	port   LinkState // the link, if it can tell
	portUp bool      // at the last look
	fell   bool      // EventPortDown was raised
	lookAt int64
}

var _ rdma.Device = (*Device)(nil)

// New makes a device over link, which it owns from now on. Its queue pair numbers
// lie in one random aligned block of 2^12, so that a filter can match them while
// nobody can guess them.
func New(link Link, opts Options) *Device {
	a := link.Attr()
	d := &Device{link: link, attr: a, opts: opts.withDefaults(a), nextTimer: math.MaxInt64, laterAt: math.MaxInt64, rkeys: map[uint32]*region{}}
	d.port, _ = link.(LinkState)
	if opts.Unsummed {
		d.lane, _ = link.(Lane)
	}
	headers := 8 + 40
	if a.Local.Addr().Unmap().Is4() {
		headers = 8 + 20
	}
	d.pathMTU = roce.PathMTU(a.MTU + headers)
	d.ackDelay, d.peerDelay = int64(d.opts.AckDelay), int64(d.opts.PeerTimeout)
	d.rnrSyndrome = roce.RNRSyndrome(d.opts.RNRDelay)
	// Blocks 0 and 0xfff hold the numbers that the IBTA reserves: 0, 1 and 0xffffff.
	d.qpnBase = (1 + d.opts.random()%(1<<12-2)) * qpnBlock
	return d
}

// Attr implements rdma.Device.
func (d *Device) Attr() rdma.DeviceAttr {
	caps := rdma.CapWrite | rdma.CapRead | rdma.CapAtomic | rdma.CapSRQ
	if d.attr.Trains {
		caps |= rdma.CapTrains
	}
	if d.opts.Unsummed {
		caps |= rdma.CapUnsummed
	}
	return rdma.DeviceAttr{
		Name: d.attr.Name, Label: "user-space", GID: d.attr.Local.Addr(), UDPPort: d.attr.Local.Port(),
		PathMTU: d.pathMTU, MaxMsg: MaxMessage, MaxInline: MaxInline, MaxQPWR: MaxQPWR,
		Caps: caps, MaxSRQWR: MaxSRQWR, MaxRdAtomic: MaxRdAtomic, MaxDestRdAtomic: MaxRdAtomic,
	}
}

// Stats is a copy of the counters; call it on the device's goroutine.
func (d *Device) Stats() Stats { return d.stats }

// QPNBlock is the first of the 2^12 numbers from which the device takes those of
// its queue pairs.
func (d *Device) QPNBlock() uint32 { return d.qpnBase }

// AllocPD implements rdma.Device.
func (d *Device) AllocPD() (rdma.PD, error) {
	if d.closed {
		return nil, ErrClosed
	}
	p := &domain{dev: d}
	d.pds = append(d.pds, p)
	return p, nil
}

// CreateCQ implements rdma.Device.
func (d *Device) CreateCQ(depth int) (rdma.CQ, error) {
	if d.closed {
		return nil, ErrClosed
	}
	if depth < 1 || depth > MaxCQE {
		return nil, fmt.Errorf("softroce: completion queue of %d entries; give 1 to %d", depth, MaxCQE)
	}
	return newCQ(d, depth), nil
}

func (d *Device) createQP(p *domain, cfg rdma.QPConfig) (*queuePair, error) {
	if d.pathMTU == 0 {
		return nil, fmt.Errorf("softroce: link %s carries packets of %d bytes; the smallest path MTU needs %d",
			d.attr.Name, d.attr.MTU, roce.MinPathMTU+roce.MaxHeaders-28)
	}
	srq, _ := cfg.SRQ.(*sharedQueue)
	switch {
	case cfg.SRQ != nil && (srq == nil || srq.pd != p || srq.closed):
		return nil, errors.New("softroce: a queue pair needs an open shared receive queue of its own domain")
	case srq != nil && cfg.RecvWRs != 0:
		return nil, fmt.Errorf("softroce: receive queue of %d requests beside a shared one; give 0", cfg.RecvWRs)
	case srq == nil && (cfg.RecvWRs < 1 || cfg.RecvWRs > MaxQPWR):
		return nil, fmt.Errorf("softroce: receive queue of %d requests; give 1 to %d", cfg.RecvWRs, MaxQPWR)
	case cfg.SendWRs < 1 || cfg.SendWRs > MaxQPWR:
		return nil, fmt.Errorf("softroce: send queue of %d requests; give 1 to %d", cfg.SendWRs, MaxQPWR)
	}
	for _, n := range [...]int{cfg.MaxRdAtomic, cfg.MaxDestRdAtomic} {
		if n < 0 || n > MaxRdAtomic {
			return nil, fmt.Errorf("softroce: %d READs and atomics at once; give 0 to %d", n, MaxRdAtomic)
		}
	}
	scq, ok1 := cfg.SendCQ.(*completionQueue)
	rcq, ok2 := cfg.RecvCQ.(*completionQueue)
	if !ok1 || !ok2 || scq.dev != d || rcq.dev != d {
		return nil, errors.New("softroce: a queue pair needs completion queues of its own device")
	}
	if len(d.live) == MaxQPs {
		return nil, ErrTooManyQPs
	}
	i := d.opts.random() % qpnBlock
	for d.table[i] != nil || i == 0 || len(d.live)+len(d.retired) < MaxQPs && slices.Contains(d.retired, i) {
		i = (i + 1) % qpnBlock
	}
	q := newQP(p, d.qpnBase+i, d.opts.random()&roce.PSNMask, cfg, scq, rcq)
	d.table[i] = q
	d.live = append(d.live, q)
	scq.qps++
	rcq.qps++
	if srq != nil {
		q.srq = srq
		srq.qps++
	}
	return q, nil
}

// FD implements rdma.Device: the link's descriptor.
func (d *Device) FD() int { return d.link.FD() }

// Close implements rdma.Device. Acknowledgements that are due go out first. Posted
// work is dropped without completions; completion queues stay readable.
func (d *Device) Close() error {
	if d.closed {
		return nil
	}
	for len(d.live) > 0 {
		d.live[len(d.live)-1].Close()
	}
	d.sendFrames()
	d.link.TxFree(d.tx[d.txHead:d.txAlloc])
	d.txHead, d.txFill, d.txAlloc = 0, 0, 0
	for _, p := range d.pds {
		p.drop()
	}
	d.closed, d.pds, d.events = true, nil, nil
	return d.link.Close()
}
