package memif

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/millrace/millrace/dpdk"
)

// Role is an end's role in the protocol.
type Role uint8

const (
	// Server owns the socket and joins the client's memory.
	Server Role = iota
	// Client connects to the socket and makes the memory.
	Client
)

// Port is one end of a connected interface; a dpdk.Port. Its frames are the
// shared memory itself, nothing is copied. Frames must be transmitted in the
// order in which AllocBurst gave them.
//
// When the peer is gone, bursts simply find nothing and Gone is closed.
type Port struct {
	role Role
	cfg  Config
	peer string
	ctl  control
	ln   *net.UnixListener // server
	fd   int               // epoll over rxEvent and signal: what the owner sleeps on
	up   atomic.Bool       // connected: everything below is set and the owner's

	regions          []*region
	tx, rx           ring
	txEvent, rxEvent int
	txBuffers        []byte // client: the buffer of each slot
	rxBuffers        []byte

	txNext, txSent uint16 // next slot to hand out, next slot to publish
	txSeen         uint16 // the peer's index of the transmit ring as last read
	placed         uint32 // bytes of what the last Place gave
	lone           expected
	warm           []byte // the buffer of txNext, if warmUp found it
	txVoid         []bool // slots handed out, given back, and still in front of others
	rxNext         uint16 // next slot to look at
	rxSeen         uint16 // the peer's index of the receive ring as last read: slots before it are filled
	rxFreed        uint16 // slots before it were given back
	rxHead         uint16 // client: slots before it are on offer
	rxDone         []bool // slots given back out of order
	rxHeld         int    // frames that the caller holds
	armed          bool
	broken         bool // the peer broke the protocol: bursts find nothing

	signal int // eventfd: the state changed
	// signalled: signal may have something to drain. Rare, so no sleep pays a read for it.
	signalled atomic.Bool
	gone      chan struct{}
	goneErr   error
	watcher   sync.WaitGroup
	closing   atomic.Bool
	mu        sync.Mutex // guards refused, and ctl until up
	refused   error

	stats, published Stats
	rxCalls          uint32
}

var (
	_ dpdk.Port   = (*Port)(nil)
	_ dpdk.Placer = (*Port)(nil)
)

// Stats counts what a port did. Owner's goroutine only.
type Stats struct {
	RxFrames, TxFrames uint64
	RxBursts, TxBursts uint64 // bursts that moved frames
	Kicks              uint64 // system calls to wake the peer
	BadDescriptors     uint64 // received descriptors that were dropped
	PeerLies           uint64 // indices or buffers of the peer outside the rings or regions
}

// rxHandle marks received frames, so that FreeBurst knows the ring.
const rxHandle = 1 << 32

func newPort(role Role, cfg Config) (*Port, error) {
	p := &Port{role: role, cfg: cfg, rxEvent: -1, txEvent: -1, signal: -1, fd: -1, gone: make(chan struct{})}
	var err error
	if p.fd, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err == nil {
		p.signal, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	}
	if err == nil {
		err = p.watchFD(p.signal)
	}
	if err != nil {
		_ = p.release()
		return nil, fmt.Errorf("memif: %w (raise the open file limit: ulimit -n)", err)
	}
	return p, nil
}

func (p *Port) watchFD(fd int) error {
	return unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
}

// start hands the connected port to its owner.
func (p *Port) start() {
	p.txVoid = make([]bool, p.tx.slots)
	p.rxDone = make([]bool, p.rx.slots)
	if err := p.watchFD(p.rxEvent); err != nil {
		p.end(fmt.Errorf("memif: epoll: %w", err)) // the peer gave something that cannot be waited for
		return
	}
	p.up.Store(true)
	p.wakeOwner()
}

// watch waits for the end of the control socket. It touches no shared memory:
// that is the owner's.
func (p *Port) watch() {
	for {
		m, fd, err := p.ctl.recv()
		closeFD(fd)
		if err == nil && m.kind() == typeDisconnect {
			err = fmt.Errorf("memif: the peer disconnected: %s", disconnectReason(m))
		}
		if err != nil {
			p.end(err)
			return
		}
	}
}

func (p *Port) end(err error) {
	select {
	case <-p.gone:
	default:
		p.goneErr = err
		close(p.gone)
		p.wakeOwner()
	}
}

func (p *Port) wakeOwner() {
	one := [8]byte{1}
	_, _ = unix.Write(p.signal, one[:])
	p.signalled.Store(true) // behind the write: who sees it can drain it
}

// Up implements dpdk.LinkState: whether the peer is there. Any goroutine.
func (p *Port) Up() bool {
	select {
	case <-p.gone:
		return false
	default:
		return p.up.Load()
	}
}

// Gone is closed when the peer closed the port, exited or was killed. Any
// goroutine.
func (p *Port) Gone() <-chan struct{} { return p.gone }

// Err says how the peer went, or while none is there why the last client was
// refused; else nil. Any goroutine.
func (p *Port) Err() error {
	select {
	case <-p.gone:
		return p.goneErr
	default:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.refused
	}
}

// Peer is the name that the peer gave itself.
func (p *Port) Peer() string { return p.peer }

// Stats returns the counters.
func (p *Port) Stats() Stats { return p.stats }

// Info implements dpdk.Port. MTU and Ring are this end's configuration: give both
// ends the same.
func (p *Port) Info() dpdk.PortInfo {
	mac := net.HardwareAddr{2, 'm', 'r', 0, 0, byte(p.role)} // locally administered
	return dpdk.PortInfo{
		Name: "memif", Driver: "memif (pure Go)", MAC: mac, MTU: p.cfg.BufferBytes - 14, Ring: 1 << p.cfg.RingLog2, Memory: true, FD: p.fd,
	}
}

// distrust ends the use of a peer that breaks the protocol.
func (p *Port) distrust() {
	p.broken = true
	p.stats.PeerLies++
}

// AllocBurst implements dpdk.Port.
func (p *Port) AllocBurst(frames []dpdk.Frame) int {
	if p.broken || !p.up.Load() {
		return 0
	}
	n := min(len(frames), p.txRoom(len(frames)))
	p.warm = nil
	for i := range n {
		data := p.txBuffer(p.txNext)
		if data == nil {
			return i
		}
		frames[i].Set(data, 0, uint64(p.txNext))
		p.txNext++
	}
	return n
}

// txRoom is how many more slots can be handed out. The peer's index, which lies on a
// cache line that the peer writes, is read only when what it last said is less than wanted.
func (p *Port) txRoom(want int) int {
	if room := p.txRoomSeen(); room >= want {
		return room
	}
	var unread uint16 // client: sent and not consumed; server: on offer and not filled
	if p.role == Client {
		p.txSeen = p.tx.tail()
		unread = p.txSent - p.txSeen
	} else {
		p.txSeen = p.tx.head()
		unread = p.txSeen - p.txSent
	}
	if int(unread) > p.tx.slots {
		p.distrust()
		return 0
	}
	return p.txRoomSeen()
}

func (p *Port) txRoomSeen() int {
	if p.role == Client {
		return p.tx.slots - int(p.txNext-p.txSeen)
	}
	return int(p.txSeen - p.txNext)
}

// txBuffer is the buffer of slot i to write into; nil if the peer lied about it, or
// has smaller ones than this end.
func (p *Port) txBuffer(i uint16) []byte {
	if p.role == Client {
		at := int(i&p.tx.mask) * p.cfg.BufferBytes
		return p.txBuffers[at : at+p.cfg.BufferBytes : at+p.cfg.BufferBytes]
	}
	b := p.inRegion(p.tx.read(i))
	if len(b) < p.cfg.BufferBytes { // less than Info promises
		p.distrust()
		return nil
	}
	return b
}

// inRegion is the memory that d names, nil if it is not wholly inside a region.
func (p *Port) inRegion(d descriptor) []byte {
	if int(d.region) >= len(p.regions) {
		return nil
	}
	mem := p.regions[d.region].mem
	end := uint64(d.offset) + uint64(d.length)
	if end > uint64(len(mem)) {
		return nil
	}
	return mem[d.offset:end:end]
}

// TxBurst implements dpdk.Port.
func (p *Port) TxBurst(frames []dpdk.Frame) int {
	if len(frames) == 0 {
		return 0
	}
	at := p.txSent
	for i := range frames {
		for p.txVoid[at&p.tx.mask] {
			p.txVoid[at&p.tx.mask] = false
			p.publish(at, 0)
			at++
		}
		if frames[i].Handle != uint64(at) {
			panic("memif: TxBurst of a frame out of the order of AllocBurst, or not allocated")
		}
		p.publish(at, uint32(frames[i].Len))
		at++
	}
	p.advance(at, len(frames))
	return len(frames)
}

// advance shows the peer the slots before at, with so many frames, and wakes it if it
// sleeps.
func (p *Port) advance(at uint16, frames int) {
	n := at - p.txSent
	p.txSent = at
	var flags uint32
	if p.role == Client {
		flags = p.tx.advanceHead(n)
	} else {
		p.tx.setTail(at)
		flags = p.tx.flags()
	}
	p.stats.TxFrames += uint64(frames)
	p.stats.TxBursts++
	if flags&flagMaskInterrupt == 0 {
		if flags&flagOnce != 0 {
			p.tx.maskInterrupt()
		}
		p.stats.Kicks++
		one := [8]byte{1}
		_, _ = unix.Write(p.txEvent, one[:]) // fails only when a kick is pending already
	}
}

// publish writes the descriptor of slot i, which becomes visible with the index.
func (p *Port) publish(i uint16, n uint32) {
	if p.role == Client {
		p.tx.write(i, descriptor{offset: uint32(buffersOffset(p.tx.slots) + int(i&p.tx.mask)*p.cfg.BufferBytes), length: n})
		return
	}
	p.tx.setLength(i, n)
}

// buffersOffset is where the buffers begin in the client's region, after both
// rings; the transmit buffers come first.
func buffersOffset(slots int) int { return (2*ringBytes(slots) + 63) &^ 63 }

// RxBurst implements dpdk.Port.
func (p *Port) RxBurst(frames []dpdk.Frame) int {
	if p.broken || !p.up.Load() {
		return 0
	}
	if p.rxCalls++; p.rxCalls%publishEvery == 0 {
		p.publishStats()
	}
	got := 0
	avail := p.rxAvailable()
	if avail == 1 {
		p.expectLone()
	}
	for ; avail > 0 && got < len(frames); avail-- {
		i := p.rxNext
		data, n := p.rxFrame(i)
		if avail == 1 && got == 0 && data != nil { // nothing else is there to do meanwhile
			p.fetchLone(data, n)
			p.foreseeLone(i)
		}
		p.rxNext++
		if data == nil {
			p.stats.BadDescriptors++
			p.giveBack(i)
			continue
		}
		frames[got].Set(data, n, rxHandle|uint64(i))
		got++
	}
	if got > 0 {
		if p.armed {
			p.armed = false
			p.rx.maskInterrupt()
		}
		p.rxHeld += got
		p.stats.RxFrames += uint64(got)
		p.stats.RxBursts++
		p.publishIfMany()
	} else if int(p.rxNext-p.rxFreed) >= min(publishIdle, p.rx.slots/4) {
		p.publishFreed()
	}
	return got
}

func (p *Port) rxAvailable() int {
	var most uint16
	if p.role == Client {
		p.rxSeen, most = p.rx.tail(), p.rxHead-p.rxNext
	} else {
		p.rxSeen, most = p.rx.head(), uint16(p.rx.slots)-(p.rxNext-p.rxFreed)
	}
	avail := p.rxSeen - p.rxNext
	if avail > most {
		p.distrust()
		return 0
	}
	return int(avail)
}

// rxFrame is the received frame in slot i, nil if its descriptor is no good.
func (p *Port) rxFrame(i uint16) ([]byte, int) {
	d := p.rx.read(i)
	if d.flags&descFlagNext != 0 || d.length == 0 {
		return nil, 0
	}
	if p.role == Server {
		b := p.inRegion(d)
		return b, len(b)
	}
	if int(d.length) > p.cfg.BufferBytes {
		return nil, 0
	}
	at := int(i&p.rx.mask) * p.cfg.BufferBytes
	return p.rxBuffers[at : at+p.cfg.BufferBytes : at+p.cfg.BufferBytes], int(d.length)
}

// FreeBurst implements dpdk.Port.
func (p *Port) FreeBurst(frames []dpdk.Frame) {
	for k := len(frames) - 1; k >= 0; k-- { // newest first: then transmit slots just rewind
		i := uint16(frames[k].Handle)
		if frames[k].Handle&rxHandle != 0 {
			p.rxHeld--
			p.giveBack(i)
			continue
		}
		p.txVoid[i&p.tx.mask] = true
		for p.txNext != p.txSent && p.txVoid[(p.txNext-1)&p.tx.mask] {
			p.txNext--
			p.txVoid[p.txNext&p.tx.mask] = false
		}
	}
	p.publishIfMany()
}

func (p *Port) giveBack(i uint16) { p.rxDone[i&p.rx.mask] = true }

// publishIdle is how many freed slots a burst that finds nothing tells the peer of: at
// once, because that takes an atomic operation on a cache line that both ends write.
const publishIdle = 16

// publishIfMany leaves it to a later burst that finds nothing, or to Arm, to tell the
// peer of freed slots, unless those that it cannot use are a quarter of the ring: a
// message should not wait for that.
func (p *Port) publishIfMany() {
	if int(p.rxSeen-p.rxFreed) >= p.rx.slots/4 {
		p.publishFreed()
	}
}

// publishFreed lets the peer reuse the received slots that are done, in order.
func (p *Port) publishFreed() {
	n := uint16(0)
	for p.rxFreed+n != p.rxNext && p.rxDone[(p.rxFreed+n)&p.rx.mask] {
		p.rxDone[(p.rxFreed+n)&p.rx.mask] = false
		if p.role == Client {
			p.rx.setLength(p.rxFreed+n, uint32(p.cfg.BufferBytes)) // the room on offer
		}
		n++
	}
	if n == 0 {
		return
	}
	p.rxFreed += n
	if p.role == Client {
		p.rxHead += n
		p.rx.advanceHead(n)
	} else {
		p.rx.setTail(p.rxFreed)
	}
}

// Watch implements dpdk.Watcher: the peer's index of the receive ring.
func (p *Port) Watch(ws []dpdk.Watched) (_ []dpdk.Watched, ok bool) {
	if p.broken || !p.up.Load() {
		return ws, true // Poll would find nothing either
	}
	w := dpdk.Watched{Word: p.rx.tailWord}
	if p.role == Server {
		w.Word = p.rx.flagsHead
	}
	w.Value = atomic.LoadUint32(w.Word)
	if p.rxAvailable() > 0 { // since the last burst
		w.Value = ^w.Value
	}
	return append(ws, w), true
}

// Arm asks the peer for a kick with the next packet, which makes Info().FD
// readable, and reports whether the port is idle: false means that packets wait
// already. The port stays armed until a burst finds packets.
func (p *Port) Arm() (idle bool) {
	p.publishStats()
	// Stale notifications first; one that comes later stays.
	if p.signalled.Load() && p.signalled.Swap(false) {
		drain(p.signal)
	}
	if !p.up.Load() || p.broken {
		return true
	}
	drain(p.rxEvent)
	p.publishFreed()
	p.armed = true
	p.rx.arm()
	return p.rxAvailable() == 0
}

func drain(eventfd int) {
	var buf [8]byte
	_, _ = unix.Read(eventfd, buf[:]) // EAGAIN if nothing was pending
}

// Close disconnects and unmaps the memory: all frames become invalid. Closing
// again does nothing.
func (p *Port) Close() error {
	if p.closing.Swap(true) {
		return nil
	}
	p.publishStats()
	var err error
	if p.rxHeld > 0 {
		err = fmt.Errorf("memif: port closed with %d received frames not given back", p.rxHeld)
	}
	return errors.Join(err, p.release())
}

// release frees everything; also after a failed set-up.
func (p *Port) release() error {
	if p.ln != nil {
		_ = p.ln.Close() // closed already if a client came
	}
	p.mu.Lock()
	if p.ctl.c != nil {
		if p.up.Load() {
			_ = p.ctl.send(disconnect("closed"), -1) // fails if the peer is gone, which is fine
		}
		_ = p.ctl.c.Close()
	}
	p.mu.Unlock()
	p.watcher.Wait()
	p.broken = true
	p.forgetClient()
	closeFD(p.signal)
	closeFD(p.fd)
	p.signal, p.fd = -1, -1
	return nil
}
