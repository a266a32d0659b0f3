package resume

import "github.com/millrace/millrace/hugepages"

// entry is a message that the peer has not acknowledged: Data, or a Bye without a
// buffer.
type entry struct {
	buf        *hugepages.Buf
	start, end int // its window, header included; see Buf.SetWindow
}

// queue is a ring of what is not acknowledged; Options bound it.
type queue struct {
	ring  []entry // length a power of two
	head  int
	count int
	bytes int // of payload and headers
}

func (q *queue) at(i int) *entry { return &q.ring[(q.head+i)&(len(q.ring)-1)] }

func (q *queue) push(e entry) {
	if q.count == len(q.ring) {
		grown := make([]entry, max(16, 2*len(q.ring)))
		for i := range q.count {
			grown[i] = *q.at(i)
		}
		q.ring, q.head = grown, 0
	}
	q.count++
	q.bytes += e.end - e.start
	*q.at(q.count - 1) = e
}

// pop releases the oldest.
func (q *queue) pop() {
	e := q.at(0)
	q.bytes -= e.end - e.start
	if e.buf != nil {
		e.buf.Release()
	}
	*e = entry{}
	q.head = (q.head + 1) & (len(q.ring) - 1)
	q.count--
}
