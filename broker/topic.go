package broker

import (
	"errors"
	"fmt"
	"time"

	"github.com/millrace/millrace/broker/seglog"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/serialize"
)

// topic is one topic's log, the batches on their way into it and the fetches that
// wait for more.
type topic struct {
	core *Core
	name string
	log  *seglog.Log

	dirty   bool
	pending group
	waiters []*waiter
	starved bool // a retry for want of memory is under way

	// In fsync mode one group at a time is at the topic's committer, a goroutine
	// that writes and syncs, so that the disk never blocks the caller of Commit;
	// meanwhile the next group grows: group commit.
	groups chan *group
	spare  *group // the other of two, nil while at the committer
}

// group is what one append stores.
type group struct {
	batches  []seglog.Batch
	produces []produce
	bytes    int   // with what they hold besides
	stored   int64 // of the batches as they are
	plain    int64 // of them uncompressed
}

// produce is a request whose batch is not stored yet. Its lease keeps the batch's
// bytes.
type produce struct {
	session     *Session
	correlation uint32
	records     uint32
	lease       netpoll.Message
}

// waiter is a fetch that found nothing yet.
type waiter struct {
	session     *Session
	topic       *topic
	correlation uint32
	offset      uint64
	maxBytes    int
	stop        func() // ends its timer

	// Its places in the lists of its topic and session; -1 once answered.
	atTopic, atSession int
}

func (c *Core) addTopic(name string, l *seglog.Log) *topic {
	t := &topic{core: c, name: name, log: l}
	if l.Durability() == seglog.Fsync {
		t.groups, t.spare = make(chan *group, 1), &group{}
		c.committers.Add(1)
		go t.runCommitter(t.groups)
	}
	c.topics[name] = t
	return t
}

// createTopic makes a topic with its first batch.
func (c *Core) createTopic(name []byte) (*topic, *wire.Error) {
	l, err := c.cfg.Store.Create(string(name))
	switch {
	case err == nil:
		return c.addTopic(string(name), l), nil
	case errors.Is(err, seglog.ErrTopicName):
		return nil, &wire.Error{Code: wire.InvalidTopic, Text: err.Error()}
	case errors.Is(err, seglog.ErrTooManyTopics):
		return nil, &wire.Error{Code: wire.TooManyTopics, Text: err.Error()}
	case errors.Is(err, seglog.ErrFull):
		return nil, &wire.Error{Code: wire.StorageFull, Text: err.Error()}
	}
	c.complain("topic cannot be made", "topic", string(name), "err", err)
	return nil, &wire.Error{Code: wire.StorageFailed, Text: err.Error()}
}

// add takes a checked batch, which is at the end of m.
func (t *topic) add(s *Session, correlation uint32, batch []byte, info *serialize.Info, m *netpoll.Message) {
	var lease netpoll.Message
	if t.groups == nil {
		lease = m.Retain() // until the end of the cycle
	} else { // for as long as the disk takes
		lease = keep(m, t.core.cfg.Pool)
		batch = lease.Data[len(lease.Data)-len(batch):]
	}
	g := &t.pending
	g.batches = append(g.batches, seglog.Batch{Payload: batch, Records: uint32(info.Records)})
	g.produces = append(g.produces, produce{s, correlation, uint32(info.Records), lease})
	g.stored += int64(info.Bytes)
	g.plain += int64(info.PlainBytes)
	// Small ones are counted with what they hold besides.
	g.bytes += len(batch) + frameOverhead
	t.core.pendingBytes += len(batch) + frameOverhead
	t.mark()
}

func (t *topic) mark() {
	if !t.dirty {
		t.dirty = true
		t.core.dirty = append(t.core.dirty, t)
	}
}

// commit stores the pending group, or hands it to the committer.
func (t *topic) commit() {
	if len(t.pending.batches) == 0 {
		return
	}
	if t.groups == nil {
		base, err := t.log.Append(t.pending.batches)
		t.stored(&t.pending, base, err)
		return
	}
	g := t.spare
	if g == nil {
		return // the group under way marks the topic when it is done
	}
	*g, t.pending = t.pending, *g
	t.spare = nil
	t.core.inFlight++
	t.groups <- g // has room: there is only one such group
}

// runCommitter stores groups until groups is closed.
func (t *topic) runCommitter(groups chan *group) {
	defer t.core.committers.Done()
	for g := range groups {
		base, err := t.log.Append(g.batches)
		done := func() {
			t.core.inFlight--
			t.stored(g, base, err)
			t.spare = g
			if len(t.pending.batches) > 0 {
				t.mark()
			}
			t.core.Commit()
		}
		for {
			serr := t.core.cfg.Scheduler.Submit(done)
			if serr == nil {
				break
			}
			if !errors.Is(serr, netpoll.ErrBackpressure) {
				// The owner has stopped and nobody can be told; the batches are stored or
				// not, but no buffer may leak.
				g.release()
				break
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
}

// stored answers the produces of g, empties it, and wakes the waiting fetches.
func (t *topic) stored(g *group, base uint64, err error) {
	var refusal *wire.Error
	if err != nil {
		refusal = t.refusal(err)
	}
	for i := range g.produces {
		p := &g.produces[i]
		if refusal != nil {
			p.session.refuse(p.correlation, refusal)
		} else {
			p.session.ack(p.correlation, base)
			base += uint64(p.records)
		}
	}
	if err == nil {
		t.core.stats.produced.Add(int64(len(g.produces)))
		t.core.stats.storedBytes.Add(g.stored)
		t.core.stats.plainBytes.Add(g.plain)
	}
	bytes := g.bytes
	g.release()
	if err == nil {
		t.wake()
	}
	t.core.settled(bytes)
}

// release empties the group, and gives its leases back.
func (g *group) release() {
	for i := range g.produces {
		g.produces[i].lease.Release()
	}
	clear(g.produces)
	clear(g.batches)
	*g = group{batches: g.batches[:0], produces: g.produces[:0]}
}

// refusal says to a producer why nothing was stored.
func (t *topic) refusal(err error) *wire.Error {
	t.core.complain("append failed", "topic", t.name, "err", err)
	if errors.Is(err, seglog.ErrFull) && !errors.Is(err, seglog.ErrFailed) {
		return &wire.Error{Code: wire.StorageFull, Text: fmt.Sprintf("nothing was stored in topic %s: %v", t.name, err)}
	}
	return &wire.Error{Code: wire.StorageFailed, Text: fmt.Sprintf("topic %s: %v", t.name, err)}
}

// wake answers the fetches that waited for more records, as far as there is
// memory.
func (t *topic) wake() {
	for i := 0; i < len(t.waiters) && !t.starved; {
		if !t.serve(t.waiters[i]) {
			i++
		}
	}
}

func (t *topic) insert(w *waiter) {
	w.atTopic, w.atSession = len(t.waiters), len(w.session.waiters)
	t.waiters = append(t.waiters, w)
	w.session.waiters = append(w.session.waiters, w)
	t.core.waiting++
}

// remove forgets a waiter.
func (t *topic) remove(w *waiter) {
	last := len(t.waiters) - 1
	t.waiters[w.atTopic] = t.waiters[last]
	t.waiters[w.atTopic].atTopic = w.atTopic
	t.waiters[last] = nil
	t.waiters = t.waiters[:last]

	s := w.session
	last = len(s.waiters) - 1
	s.waiters[w.atSession] = s.waiters[last]
	s.waiters[w.atSession].atSession = w.atSession
	s.waiters[last] = nil
	s.waiters = s.waiters[:last]

	w.atTopic, w.atSession = -1, -1
	t.core.waiting--
	if w.stop != nil {
		w.stop()
	}
}
