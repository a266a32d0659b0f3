package rdma

import "github.com/millrace/millrace/netpoll"

// Watched is netpoll's.
type Watched = netpoll.Watched

// Watcher is what a device implements that knows which words of memory change when
// something arrives; see netpoll.Watcher.
type Watcher interface {
	Watch(ws []Watched) (_ []Watched, ok bool)
}

// Watch implements netpoll.Watcher.
func (el *EventLoop) Watch(ws []Watched, worked bool) (_ []Watched, ok bool) {
	if worked && !el.onlyLone {
		return ws, false
	}
	for _, d := range el.active {
		if d.watcher == nil {
			return ws, false
		}
		if ws, ok = d.watcher.Watch(ws); !ok {
			return ws, false
		}
	}
	return ws, true
}
