package netpoll

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// waker is where a loop sleeps: an epoll instance over an eventfd and the
// backends' descriptors.
type waker struct {
	epfd, evfd int
	sleeping   atomic.Bool
	mu         sync.Mutex // guards evfd against a notify during close
	closed     bool
	noPwait2   bool // kernel before 5.11, or an emulator: millisecond time-outs
	events     [16]unix.EpollEvent
}

func newWaker() (*waker, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("netpoll: epoll_create1: %w (raise the open file limit: ulimit -n)", err)
	}
	evfd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		_ = unix.Close(epfd)
		return nil, fmt.Errorf("netpoll: eventfd: %w (raise the open file limit: ulimit -n)", err)
	}
	w := &waker{epfd: epfd, evfd: evfd}
	if err := w.watch(evfd); err != nil {
		_ = w.close()
		return nil, err
	}
	return w, nil
}

func (w *waker) watch(fd int) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}
	if err := unix.EpollCtl(w.epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("netpoll: epoll_ctl add fd %d: %w", fd, err)
	}
	return nil
}

func (w *waker) unwatch(fd int) error {
	if err := unix.EpollCtl(w.epfd, unix.EPOLL_CTL_DEL, fd, nil); err != nil {
		return fmt.Errorf("netpoll: epoll_ctl del fd %d: %w", fd, err)
	}
	return nil
}

// announce says that the loop is about to sleep; after it the loop must look at
// its queue once more. Pairs with notify: one of the two sees the other's write
// (both are sequentially consistent).
func (w *waker) announce() { w.sleeping.Store(true) }

func (w *waker) cancel() { w.sleeping.Store(false) }

// notify wakes the loop if it sleeps or is about to. Any goroutine. Only the
// notifier that ends the sleep pays for the system call.
func (w *waker) notify() {
	if !w.sleeping.Load() || !w.sleeping.CompareAndSwap(true, false) {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		one := [8]byte{1}
		// The write fails only when the counter is full, and then the loop wakes too.
		_, _ = unix.Write(w.evfd, one[:])
	}
}

// block sleeps until a watched descriptor is readable or timeout passed; a
// negative timeout means without end.
func (w *waker) block(timeout time.Duration) error {
	n, err := w.wait(timeout)
	w.sleeping.Store(false)
	if err == unix.EINTR { // the Go runtime's preemption signal
		return nil
	}
	if err != nil {
		return fmt.Errorf("netpoll: epoll_wait: %w", err)
	}
	for _, ev := range w.events[:n] {
		if int(ev.Fd) == w.evfd {
			var buf [8]byte
			_, _ = unix.Read(w.evfd, buf[:])
		}
	}
	return nil
}

func (w *waker) wait(timeout time.Duration) (int, error) {
	if timeout >= 0 && !w.noPwait2 {
		n, err := epollPwait2(w.epfd, w.events[:], timeout)
		if err != unix.ENOSYS {
			return n, err
		}
		w.noPwait2 = true
	}
	ms := -1
	if timeout >= 0 {
		ms = int((timeout + time.Millisecond - 1) / time.Millisecond)
	}
	return unix.EpollWait(w.epfd, w.events[:], ms)
}

func (w *waker) close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	_ = unix.Close(w.evfd)
	return unix.Close(w.epfd)
}
