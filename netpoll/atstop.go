package netpoll

// AtStop makes the loop call fn when it has stopped, after every connection was
// closed and before its memory goes, so that what holds buffers beyond connections
// can release them. cancel undoes it. Both on the loop's goroutine.
func (l *Loop) AtStop(fn func()) (cancel func()) {
	if l.atStop == nil {
		l.atStop = map[*func()]struct{}{}
	}
	l.atStop[&fn] = struct{}{}
	return func() { delete(l.atStop, &fn) }
}
