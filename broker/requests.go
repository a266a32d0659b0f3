package broker

import (
	"errors"
	"fmt"
	"time"

	"github.com/millrace/millrace/broker/seglog"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/hugepages"
	"github.com/millrace/millrace/netpoll"
)

// request implements service.
func (c *Core) request(s *Session, kind wire.Kind, m *netpoll.Message, frame []byte) bool {
	switch kind {
	case wire.KindProduce:
		return c.produce(s, m, frame)
	case wire.KindFetch:
		return c.fetch(s, frame)
	default:
		return c.metadata(s, frame)
	}
}

// reject answers a request that was not carried out.
func (c *Core) reject(s *Session, correlation uint32, e *wire.Error) bool {
	c.stats.refused.Add(1)
	s.refuse(correlation, e)
	return true
}

func (c *Core) produce(s *Session, m *netpoll.Message, frame []byte) bool {
	p, err := wire.ParseProduce(frame)
	if err != nil {
		s.violation(0, wire.BadRequest, err.Error())
		return true
	}
	if c.closing {
		return c.reject(s, p.Correlation, errShuttingDown)
	}
	if c.pendingBytes >= c.cfg.MaxPendingBytes {
		if !s.blocked {
			s.blocked = true
			c.blocked = append(c.blocked, s)
		}
		return false
	}
	if limit := c.maxBatchBytes(); len(p.Batch) > limit {
		return c.reject(s, p.Correlation, tooLarge(len(p.Batch), limit))
	}
	batch, refusal := c.checker.check(p.Batch, s.role != wire.RoleProxy)
	if refusal != nil {
		return c.reject(s, p.Correlation, refusal)
	}
	t := c.topics[string(p.Topic)]
	if t == nil {
		if t, refusal = c.createTopic(p.Topic); refusal != nil {
			return c.reject(s, p.Correlation, refusal)
		}
	}
	t.add(s, p.Correlation, p.Batch, &batch, m)
	return true
}

func tooLarge(bytes, limit int) *wire.Error {
	return &wire.Error{Code: wire.TooLarge, A: uint64(limit),
		Text: fmt.Sprintf("the batch has %d bytes uncompressed, at most %d are taken: send smaller batches, or raise the broker's largest message", bytes, limit)}
}

func (c *Core) fetch(s *Session, frame []byte) bool {
	f, err := wire.ParseFetch(frame)
	if err != nil {
		s.violation(0, wire.BadRequest, err.Error())
		return true
	}
	if c.closing {
		return c.reject(s, f.Correlation, errShuttingDown)
	}
	t := c.topics[string(f.Topic)]
	if t == nil {
		return c.reject(s, f.Correlation, unknownTopic(f.Topic))
	}
	limit := c.cfg.MaxWaitingFetches
	if s.role != wire.RoleProxy {
		limit = min(limit, maxClientFetches)
	}
	if len(s.waiters) >= limit || c.waiting >= c.cfg.MaxWaitingFetches {
		return c.reject(s, f.Correlation, &wire.Error{Code: wire.TooManyRequests, A: uint64(limit),
			Text: fmt.Sprintf("%d fetches of this connection and %d in all wait already, the limits are %d and %d: have fewer at a time",
				len(s.waiters), c.waiting, limit, c.cfg.MaxWaitingFetches)})
	}
	w := &waiter{session: s, topic: t, correlation: f.Correlation, offset: f.Offset,
		maxBytes: max(0, min(int(f.MaxBytes), s.maxFrame-wire.FetchResponseHeaderBytes))}
	t.insert(w)
	if t.serve(w) {
		return true
	}
	wait := min(time.Duration(f.WaitMillis)*time.Millisecond, c.cfg.MaxWait)
	if wait == 0 {
		t.expire(w)
		return true
	}
	w.stop = c.cfg.Scheduler.After(wait, func() {
		w.stop = nil
		t.expire(w)
	})
	return true
}

func unknownTopic(name []byte) *wire.Error {
	return &wire.Error{Code: wire.UnknownTopic, Text: fmt.Sprintf("%q: a topic exists once something was produced to it", name)}
}

// serve answers w if there is something to answer, and removes it then. A session
// that does not take its answers is left waiting.
func (t *topic) serve(w *waiter) bool {
	s, c := w.session, t.core
	if s.congested() || t.starved {
		return false
	}
	if c.crowded() {
		t.starve()
		return false
	}
	span, err := t.log.Find(w.offset, w.maxBytes)
	if err == nil && span.Bytes() == 0 {
		return false
	}
	if err != nil {
		return t.fail(w, err)
	}
	if n := wire.FetchResponseHeaderBytes + span.Bytes(); n > s.maxFrame {
		t.remove(w)
		return c.reject(s, w.correlation, &wire.Error{Code: wire.TooLarge, A: uint64(s.maxFrame),
			Text: fmt.Sprintf("the batch at offset %d needs a message of %d bytes, the consumer takes %d: raise its largest message", w.offset, n, s.maxFrame)})
	}
	b, err := c.cfg.Pool.Get(wire.FetchResponseHeaderBytes+span.Bytes(), hugepages.Send)
	if err != nil {
		t.starve()
		return false
	}
	entries, _, err := t.log.Read(&span, b.Bytes()[wire.FetchResponseHeaderBytes:])
	if err != nil {
		b.Release()
		return t.fail(w, err)
	}
	_, latest := t.log.Bounds()
	wire.AppendFetchResponseHeader(b.Bytes()[:0], w.correlation, latest)
	b.Resize(wire.FetchResponseHeaderBytes + len(entries))
	t.remove(w)
	c.stats.fetched.Add(1)
	c.stats.fetchedBytes.Add(int64(len(entries)))
	s.send(b)
	return true
}

// fail answers w with an error of the log.
func (t *topic) fail(w *waiter, err error) bool {
	t.remove(w)
	var re *seglog.RangeError
	if errors.As(err, &re) {
		return t.core.reject(w.session, w.correlation, &wire.Error{Code: wire.OffsetOutOfRange, A: re.Earliest, B: re.Latest,
			Text: fmt.Sprintf("topic %s: %v", t.name, err)})
	}
	t.core.log.Error("read failed", "topic", t.name, "offset", w.offset, "err", err)
	return t.core.reject(w.session, w.correlation, &wire.Error{Code: wire.StorageFailed, Text: fmt.Sprintf("topic %s: %v", t.name, err)})
}

// starve serves the topic's waiters again when the pool may have memory.
func (t *topic) starve() {
	if t.starved {
		return
	}
	t.starved = true
	t.core.later(func() {
		t.starved = false
		t.wake()
	})
}

// expire answers w, with records if there are any after all.
func (t *topic) expire(w *waiter) {
	if w.atTopic < 0 || t.serve(w) { // a timer may come too late to be stopped
		return
	}
	t.remove(w)
	t.core.respondEmpty(w.session, w.correlation, t.log)
}

func (c *Core) respondEmpty(s *Session, correlation uint32, l *seglog.Log) {
	s.answer(func() *hugepages.Buf {
		b, err := c.cfg.Pool.Get(wire.FetchResponseHeaderBytes, hugepages.Send)
		if err == nil {
			_, latest := l.Bounds()
			wire.AppendFetchResponseHeader(b.Bytes()[:0], correlation, latest)
		}
		return b
	})
}

func (c *Core) metadata(s *Session, frame []byte) bool {
	m, err := wire.ParseMetadata(frame)
	if err != nil {
		s.violation(0, wire.BadRequest, err.Error())
		return true
	}
	var infos []wire.TopicInfo
	if len(m.Topic) > 0 {
		t := c.topics[string(m.Topic)]
		if t == nil {
			return c.reject(s, m.Correlation, unknownTopic(m.Topic))
		}
		infos = append(infos, t.info())
	} else {
		for _, name := range c.cfg.Store.Topics() {
			if t := c.topics[name]; t != nil && len(infos) < wire.MaxTopicInfos {
				infos = append(infos, t.info())
			}
		}
	}
	n := wire.MetadataResponseBytes(infos)
	if n > s.maxFrame {
		return c.reject(s, m.Correlation, &wire.Error{Code: wire.TooLarge, A: uint64(s.maxFrame),
			Text: fmt.Sprintf("the list of %d topics has %d bytes: ask for one topic, or raise the largest message", len(infos), n)})
	}
	reply := wire.MetadataResponse{Correlation: m.Correlation, Durability: uint8(c.cfg.Store.Durability()), Topics: infos}
	s.answer(func() *hugepages.Buf {
		b, err := c.cfg.Pool.Get(n, hugepages.Send)
		if err == nil {
			wire.AppendMetadataResponse(b.Bytes()[:0], reply)
		}
		return b
	})
	return true
}

func (t *topic) info() wire.TopicInfo {
	earliest, latest := t.log.Bounds()
	return wire.TopicInfo{Topic: t.name, Earliest: earliest, Latest: latest}
}
