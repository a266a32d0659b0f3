package softroce

import "github.com/millrace/millrace/rdma"

// Watcher is implemented by a Link that knows which words of memory change when a packet
// arrives; see netpoll.Watcher.
type Watcher interface {
	Watch(ws []rdma.Watched) (_ []rdma.Watched, ok bool)
}

// Watch implements rdma.Watcher.
func (d *Device) Watch(ws []rdma.Watched) (_ []rdma.Watched, ok bool) {
	if w, watches := d.link.(Watcher); watches && !d.closed {
		return w.Watch(ws)
	}
	return ws, false
}
