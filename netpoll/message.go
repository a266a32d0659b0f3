package netpoll

import "github.com/millrace/millrace/hugepages"

// Segment is one contiguous piece of a received message: bytes inside Buf, which
// keeps them alive. Several messages may share one Buf.
type Segment struct {
	Data []byte
	Buf  *hugepages.Buf
}

// Message is one received message: a lease on bytes that the backend owns.
//
// The lease ends when Handler.OnMessages returns. A handler that needs the bytes
// longer calls Retain and, once done, Release, on any goroutine. A message that
// was larger than one receive buffer is a chain: Segment is its first piece,
// Rest the others.
type Message struct {
	Segment
	Rest []Segment
}

// Len returns the length of the message in bytes, over all segments.
func (m *Message) Len() int {
	n := len(m.Data)
	for i := range m.Rest {
		n += len(m.Rest[i].Data)
	}
	return n
}

// Contiguous returns the whole message as one slice. A message of a single
// segment is returned in place. A chain is copied into one buffer of pool, which
// then replaces the chain, so that the lease (and Release) covers the copy; it
// fails only when the pool has no room. The slice is valid as long as the lease.
func (m *Message) Contiguous(pool *hugepages.Pool) ([]byte, error) {
	if len(m.Rest) == 0 {
		return m.Data, nil
	}
	b, err := pool.Get(m.Len(), hugepages.Receive)
	if err != nil {
		return nil, err
	}
	dst := b.Bytes()
	n := copy(dst, m.Data)
	for i := range m.Rest {
		n += copy(dst[n:], m.Rest[i].Data)
	}
	m.Release()
	m.Segment = Segment{Data: dst, Buf: b}
	m.Rest = nil
	return dst, nil
}

// Retain extends the lease beyond OnMessages and returns the message to keep;
// the caller owes one Release for it.
func (m *Message) Retain() Message {
	m.Buf.Retain()
	kept := Message{Segment: m.Segment}
	if len(m.Rest) > 0 {
		kept.Rest = append([]Segment(nil), m.Rest...)
		for i := range kept.Rest {
			kept.Rest[i].Buf.Retain()
		}
	}
	return kept
}

// Release ends a lease that Retain extended. Backends call it for every message
// after OnMessages returned.
func (m *Message) Release() {
	m.Buf.Release()
	for i := range m.Rest {
		m.Rest[i].Buf.Release()
	}
	m.Data, m.Buf, m.Rest = nil, nil, nil
}
