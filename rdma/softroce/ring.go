package softroce

// ring is the round robin of queue pairs that may have packets to send: a list
// linked through the queue pairs, so that it needs no memory and no bound.
type ring struct{ first, last *queuePair }

// add puts q last unless it is there already.
func (r *ring) add(q *queuePair) {
	if q.active {
		return
	}
	q.active, q.nextActive = true, nil
	if r.last == nil {
		r.first = q
	} else {
		r.last.nextActive = q
	}
	r.last = q
}

// take removes and returns the first, nil if there is none.
func (r *ring) take() *queuePair {
	q := r.first
	if q == nil {
		return nil
	}
	r.first = q.nextActive
	if r.first == nil {
		r.last = nil
	}
	q.active, q.nextActive = false, nil
	return q
}
