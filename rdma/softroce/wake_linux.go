package softroce

import (
	"os"

	"golang.org/x/sys/unix"
)

// spinLooks is after how many looks since the last Arm a loop counts as spinning.
const spinLooks = 256

// wake is the descriptor that a loop sleeps on: an epoll instance that watches a
// link's sockets only while the loop may sleep. Whoever sends to a watched socket pays
// for it, asleep or not: 0.4 µs of a round trip's 7.
type wake struct {
	ep    int
	on    bool
	looks int // since the last Arm, while on
}

func (w *wake) open() (err error) {
	w.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	return os.NewSyscallError("epoll_create1", err)
}

// spinning counts a look, and tells whether to watch no longer.
func (w *wake) spinning() bool {
	if !w.on {
		return false
	}
	w.looks++
	return w.looks > spinLooks
}

func (w *wake) watch(fd int) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(w.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN}))
}

func (w *wake) unwatch(fd int) {
	_ = unix.EpollCtl(w.ep, unix.EPOLL_CTL_DEL, fd, &unix.EpollEvent{}) // fails for what is not watched
}

func (w *wake) close() error {
	if w.ep < 0 {
		return nil
	}
	ep := w.ep
	w.ep = -1
	return os.NewSyscallError("close", unix.Close(ep))
}
