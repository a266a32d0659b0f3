package netpoll

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// punctualBelow is how long a sleep must be for the kernel's usual lateness, 50 µs, to be
// nothing beside it.
const punctualBelow = 2 * time.Millisecond

// waker is the loop's one epoll instance: where it sleeps, over an eventfd, the
// descriptors of backends, and the sockets of the TCP backend, so that one system
// call both sleeps and tells which sockets are ready.
//
// An event's Pad tells them apart: 0 for what only ends the sleep, else the
// socket's generation.
type waker struct {
	clock      func() int64
	epfd, evfd int
	sleeping   atomic.Bool
	notifiedAt atomic.Int64 // clock of the notification that is under way
	mu         sync.Mutex   // guards evfd against a notify during close
	closed     bool
	noPwait2   bool // kernel before 5.11, or an emulator: millisecond time-outs
	events     [64]unix.EpollEvent
	sockets    []unix.EpollEvent // found by the last block and not yet taken
	asked      bool              // the last block told which sockets are ready, and nobody has taken that
}

func newWaker(clock func() int64) (*waker, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("netpoll: epoll_create1: %w (raise the open file limit: ulimit -n)", err)
	}
	evfd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		_ = unix.Close(epfd)
		return nil, fmt.Errorf("netpoll: eventfd: %w (raise the open file limit: ulimit -n)", err)
	}
	w := &waker{clock: clock, epfd: epfd, evfd: evfd}
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

// socket adds or changes (op) the events that a socket waits for.
func (w *waker) socket(op, fd int, generation int32, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd), Pad: generation}
	return unix.EpollCtl(w.epfd, op, fd, &ev)
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
		w.notifiedAt.Store(w.clock())
		one := [8]byte{1}
		// The write fails only when the counter is full, and then the loop wakes too.
		_, _ = unix.Write(w.evfd, one[:])
	}
}

// block sleeps until a watched descriptor or a socket is ready or timeout passed;
// a negative timeout means without end. late is how long the wake-up took, 0 where
// that cannot be known.
func (w *waker) block(timeout time.Duration) (late int64, err error) {
	w.sockets, w.asked = nil, false
	from := int64(0)
	if timeout >= 0 {
		from = w.clock()
		if timeout < punctualBelow {
			punctual()
		}
	}
	n, err := w.wait(timeout)
	w.sleeping.Store(false)
	if err == unix.EINTR { // the Go runtime's preemption signal
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("netpoll: epoll_wait: %w", err)
	}
	w.asked = true
	if n == 0 && timeout > 0 && timeout < punctualBelow {
		return w.clock() - from - int64(timeout), nil
	}
	var notified bool
	w.sockets, notified = w.sort(n)
	if notified {
		if at := w.notifiedAt.Swap(0); at != 0 {
			late = w.clock() - at
		}
	}
	return late, nil
}

// sort moves the sockets among the first n events to the front, and takes a
// notification in.
func (w *waker) sort(n int) (sockets []unix.EpollEvent, notified bool) {
	k := 0
	for i := range w.events[:n] {
		switch ev := &w.events[i]; {
		case ev.Pad != 0:
			w.events[k] = *ev
			k++
		case int(ev.Fd) == w.evfd:
			var buf [8]byte
			_, _ = rawRead(w.evfd, buf[:])
			notified = true
		}
	}
	return w.events[:k], notified
}

// ready returns the sockets that the last block found. asked is false if it was
// interrupted or they were taken. Valid until the next call of a method.
func (w *waker) ready() (sockets []unix.EpollEvent, asked bool) {
	sockets, asked = w.sockets, w.asked
	w.sockets, w.asked = nil, false
	return sockets, asked
}

// poll asks for ready sockets, at most as many as limit.
func (w *waker) poll(limit int) ([]unix.EpollEvent, error) {
	n, err := epollPoll(w.epfd, w.events[:min(len(w.events), limit)])
	if err != nil {
		return nil, err
	}
	sockets, _ := w.sort(n)
	return sockets, nil
}

// nap sleeps for d without listening to anything.
func (w *waker) nap(d time.Duration) {
	punctual()
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&ts, nil) // EINTR, the runtime's preemption signal, ends the nap early
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
