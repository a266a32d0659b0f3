package softroce

import (
	"math"

	"github.com/millrace/millrace/rdma"
	"github.com/millrace/millrace/rdma/roce"
)

// txRetryNanos is how long a loop may sleep while the link refuses frames, or cannot
// wake it: no descriptor tells when to look again.
const txRetryNanos = 20_000

// portNanos is how often the device looks whether its link is up, while it runs.
const portNanos = 10_000_000

// Progress implements rdma.Device. One call sends what is posted, then the
// acknowledgements that are due, then receives one burst. So what the caller posts
// in answer to received messages leaves before their acknowledgement.
func (d *Device) Progress(now int64) (work int, deadline int64) {
	if d.closed {
		return 0, 0
	}
	d.now = now
	d.starved, d.failed = false, false
	if d.port != nil {
		d.watchPort(now)
	}
	if now >= d.nextTimer {
		if d.armed > 0 {
			work += d.receiveAll(now)
		}
		d.expire(now)
	}
	if d.blocked {
		work += d.unblock()
	}
	if d.txHead != d.txFill {
		d.sendFrames() // what the link refused last time
	}
	if d.respStarved {
		d.respStarved = false
		work += d.respond(false)
	}
	if d.active.first != nil {
		work += d.transmit(now)
	}
	if now >= d.laterAt || d.flush && d.flushable {
		d.collect(now)
	}
	if len(d.due) > 0 {
		work += d.respond(false)
	}
	d.flush = false
	if d.txHead != d.txFill {
		d.sendFrames()
	}
	work += d.receive(now)
	if d.urgent {
		d.urgent = false
		work += d.respond(true)
		d.sendFrames()
	}
	return work, d.deadline(now)
}

// deadline is when Progress must run again without a notification, 0 for never.
func (d *Device) deadline(now int64) int64 {
	t := int64(math.MaxInt64)
	if d.armed > 0 {
		t = d.nextTimer
	}
	switch {
	case d.starved || d.restless:
		t = min(t, now+txRetryNanos)
	case len(d.due) > 0:
		return now
	default:
		t = min(t, d.laterAt)
	}
	if t == math.MaxInt64 {
		return 0
	}
	return t
}

// transmit sends packets of the active queue pairs in turn, one burst at most.
func (d *Device) transmit(now int64) (sent int) {
	for sent < burst {
		q := d.active.take()
		if q == nil {
			break
		}
		n, more := q.transmit(now, min(quantum, burst-sent))
		sent += n
		if n > 0 {
			q.joinData(now)
		}
		if more {
			d.active.add(q)
		}
		if d.starved {
			break
		}
	}
	return sent
}

// frame is the next empty transmit frame, which counts as filled from then on;
// nil if the link has none.
func (d *Device) frame() *Frame {
	if d.txFill == d.txAlloc && !d.refill() {
		return nil
	}
	f := &d.tx[d.txFill]
	d.txFill++
	return f
}

func (d *Device) refill() bool {
	if d.txAlloc == burst { // and all are filled; sendFrames starts over once all are taken
		if d.sendFrames(); d.txAlloc == burst {
			return false
		}
	}
	want := burst
	if d.stats.LaneSent != d.laneMet { // the next message in the lane gives back what is left
		d.laneMet = d.stats.LaneSent
		want = min(burst, d.txAlloc+quantum)
	}
	n := d.link.TxAlloc(d.tx[d.txAlloc:want])
	if n == 0 && d.txHead != d.txFill { // the link may have frames again once it has sent these
		d.sendFrames()
		n = d.link.TxAlloc(d.tx[d.txAlloc:max(want, d.txAlloc)])
	}
	if n == 0 {
		d.starve()
		return false
	}
	d.txAlloc += n
	return true
}

func (d *Device) starve() {
	d.starved = true
	d.stats.TxRefused++
}

// sendFrames hands the filled frames to the link. Those that it refuses stay, in
// order, for the next call.
func (d *Device) sendFrames() {
	fs := d.tx[d.txHead:d.txFill]
	if len(fs) == 0 {
		return
	}
	bytes := 0
	for i := range fs {
		bytes += fs[i].Len
	}
	n := d.link.Tx(fs)
	if n < len(fs) {
		for i := n; i < len(fs); i++ {
			bytes -= fs[i].Len
		}
		d.starve()
	}
	d.txHead += n
	if d.txHead == d.txAlloc {
		d.txHead, d.txFill, d.txAlloc = 0, 0, 0
	}
	d.stats.TxPackets += uint64(n)
	d.stats.TxBytes += uint64(bytes)
}

// collect makes those acknowledgements due that have waited long enough or, before the
// loop sleeps, that were asked for.
func (d *Device) collect(now int64) {
	keep := 0
	d.laterAt = math.MaxInt64
	for _, q := range d.later {
		if q.resp == respAck && !q.inDue {
			if now+ackSlack < q.ackAt && !(d.flush && q.askedBack) {
				d.laterAt = min(d.laterAt, q.ackAt)
				d.later[keep] = q
				keep++
				continue
			}
			q.hasten()
		}
		q.inLater = false
	}
	clear(d.later[keep:])
	d.later = d.later[:keep]
	if d.flush {
		d.flushable = false
	}
}

// respond sends what is due, or only what is urgent: not acknowledgements alone. Each
// queue pair has a turn of quantum packets.
func (d *Device) respond(urgent bool) (sent int) {
	keep := 0
	for i, q := range d.due {
		left := true
		if !urgent || q.resp != respAck || !q.answers.empty() {
			var n int
			var starved bool
			n, left, starved = q.respond(quantum)
			sent += n
			if starved {
				d.respStarved = true
				keep += copy(d.due[keep:], d.due[i:])
				break
			}
		}
		if left {
			d.due[keep] = q
			keep++
		} else {
			q.inDue = false
		}
	}
	clear(d.due[keep:])
	d.due = d.due[:keep]
	return sent
}

// receive takes one burst from the link.
func (d *Device) receive(now int64) int {
	n := d.link.Rx(d.rx[:])
	if n == 0 {
		return 0
	}
	for i := range d.rx[:n] {
		d.packet(&d.rx[i], now)
	}
	d.link.RxFree(d.rx[:n])
	return n
}

// receiveAll empties the link before timers fire: after this process was kept off
// its CPU, what a timer misses may have arrived. Bounded, for a flood never ends; twice
// at least, for a link may pass over one look.
func (d *Device) receiveAll(now int64) (n int) {
	for i := range 16 {
		k := d.receive(now)
		n += k
		if k < burst && i > 0 {
			break
		}
	}
	return n
}

// packet checks one received packet and hands it to its queue pair. Nothing but
// the counters changes before the ICRC has been checked, where there is one.
func (d *Device) packet(f *Frame, now int64) {
	s := &d.stats
	s.RxPackets++
	s.RxBytes += uint64(f.Len)
	if f.Len > len(f.Data) || f.Len < roce.MinPacket || f.Len > frameBytes {
		s.DropLength++
		return
	}
	p := f.Data[:f.Len]
	if d.lane != nil && d.takeLane(p, f.Src.Addr(), now) {
		return
	}
	h := (*roce.BTH)(p)
	if h.TVer() != 0 {
		s.DropVersion++
		return
	}
	op := h.Opcode()
	props := op.Props()
	if props == 0 {
		s.DropOpcode++
		return
	}
	body := len(p) - roce.ICRCLen - h.Pad()
	if body < op.HeaderLen() {
		s.DropLength++
		return
	}
	qpn := h.DestQPN()
	if qpn&^(qpnBlock-1) != d.qpnBase {
		s.DropQPN++
		return
	}
	q := d.table[qpn&(qpnBlock-1)]
	if q == nil {
		s.DropQPN++
		return
	}
	if q.state != rdma.QPReadyToSend {
		s.DropState++
		if q.state == rdma.QPInit && !q.told && d.intact(f, p) {
			q.told = true
			d.event(rdma.Event{Kind: rdma.EventCommEstablished, QPN: q.num})
		}
		return
	}
	if f.Src.Addr() != q.peerAddr {
		s.DropSource++
		return
	}
	// Both members of the default partition may talk to a full member (IBTA vol. 1, §10.9.3).
	if h.PKey()|0x8000 != roce.DefaultPKey {
		s.DropPKey++
		return
	}
	data := p[op.HeaderLen():body]
	if !q.unsummed {
		var ok bool
		if data, ok = q.check(f, p, data, props); !ok {
			s.DropICRC++
			return
		}
	}
	switch {
	case op == roce.Acknowledge:
		q.acknowledge((*roce.AETH)(p[roce.BTHLen:]), h.PSN(), now)
	case props&roce.IsResponse != 0:
		q.answer(p, data, props, now)
	default:
		q.request(p, data, props, now)
	}
}

// check tells whether the ICRC of packet p in f is right. data is p's payload; the one
// returned lies where the request wants it if that could be had with the sum.
func (q *queuePair) check(f *Frame, p, data []byte, props roce.Props) ([]byte, bool) {
	covered := p[:len(p)-roce.ICRCLen]
	if f.Pseudo != nil {
		return data, q.dev.sums(f, p, roce.Sum(f.Pseudo, covered))
	}
	if f.Src.Port() != q.rxPort {
		q.setRxPort(f.Src.Port())
	}
	h := (*roce.BTH)(p)
	if len(data) >= fuseMin && props&roce.IsSend != 0 && h.PSN() == q.expected {
		if at := q.landing(props, len(data)); at != nil {
			start := h.Opcode().HeaderLen()
			sum := q.rxCRC.SumCopy(p[:start], at, data, covered[start+len(data):])
			return at, q.dev.sums(f, p, sum)
		}
	}
	return data, q.dev.sums(f, p, q.rxCRC.Sum(covered))
}

// sums tells whether sum is the ICRC of packet p in f.
func (d *Device) sums(f *Frame, p []byte, sum uint32) bool {
	delta := sum ^ roce.GetICRC(p[len(p)-roce.ICRCLen:])
	return delta == 0 || f.Idents != nil && f.Idents.accept(delta, len(p))
}

// intact is the check of the ICRC where no queue pair knows the sender yet.
func (d *Device) intact(f *Frame, p []byte) bool {
	covered := p[:len(p)-roce.ICRCLen]
	if f.Pseudo != nil {
		return d.sums(f, p, roce.Sum(f.Pseudo, covered))
	}
	if f.Src.Addr().Is4() != d.attr.Local.Addr().Unmap().Is4() {
		return false
	}
	var b [56]byte
	crc := roce.NewICRC(roce.AppendPseudo(b[:0], f.Src, d.attr.Local))
	return d.sums(f, p, crc.Sum(covered))
}

// watchPort raises an event when the link goes down, or up again. That it comes up for
// the first time is none.
func (d *Device) watchPort(now int64) {
	if now < d.lookAt {
		return
	}
	d.lookAt = now + portNanos
	up := d.port.Up()
	switch {
	case up == d.portUp:
	case !up:
		d.fell = true
		d.event(rdma.Event{Kind: rdma.EventPortDown})
	case d.fell:
		d.fell = false
		d.event(rdma.Event{Kind: rdma.EventPortUp})
	}
	d.portUp = up
}

// expire fires the timers that are due and finds the next one.
func (d *Device) expire(now int64) {
	d.nextTimer = math.MaxInt64
	for _, q := range d.live {
		if q.timer == 0 {
			continue
		}
		if q.timer <= now {
			q.expired(now)
		}
		if q.timer != 0 {
			d.nextTimer = min(d.nextTimer, q.timer)
		}
	}
}

// unblock reports what waited for room in a completion queue.
func (d *Device) unblock() (n int) {
	d.blocked = false
	for _, q := range d.live {
		if q.blocked {
			n += q.drain()
			if !q.blocked && q.cur != q.tail {
				d.active.add(q)
			}
		}
	}
	return n
}
