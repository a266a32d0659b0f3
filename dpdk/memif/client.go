package memif

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// Connect joins the server that listens on the socket at path, as the client: it
// makes the memory. The port then belongs to the goroutine that polls it.
func Connect(ctx context.Context, path string, cfg Config) (*Port, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, fmt.Errorf("memif: connecting to %s: %w (is the server running, and may this user open the socket?)", path, err)
	}
	p, err := newPort(Client, cfg)
	if err != nil {
		_ = nc.Close()
		return nil, err
	}
	p.ctl = control{nc.(*net.UnixConn)}
	if err := p.clientHandshake(ctx); err != nil {
		_ = p.release()
		return nil, err
	}
	p.start()
	p.watcher.Add(1)
	go func() {
		defer p.watcher.Done()
		p.watch()
	}()
	return p, nil
}

func (p *Port) clientHandshake(ctx context.Context) error {
	defer p.ctl.guard(ctx)()
	m, err := p.ctl.expect(typeHello)
	if err != nil {
		return err
	}
	h := decodeHello(m)
	if h.minVersion > protocolVersion || h.maxVersion < protocolVersion {
		return fmt.Errorf("%w: the server speaks memif %d.%d to %d.%d, this side 2.0", ErrProtocol,
			h.minVersion>>8, h.minVersion&0xff, h.maxVersion>>8, h.maxVersion&0xff)
	}
	p.cfg.RingLog2 = min(p.cfg.RingLog2, h.maxLog2Ring)
	p.peer = h.name

	slots := 1 << p.cfg.RingLog2
	buffersAt := buffersOffset(slots)
	r, err := newRegion(buffersAt + 2*slots*p.cfg.BufferBytes)
	if err != nil {
		return err
	}
	p.regions = append(p.regions, r)
	for i := range 2 {
		binary.LittleEndian.PutUint32(r.mem[i*ringBytes(slots):], ringCookie)
	}
	p.tx = ringAt(r.mem, 0, p.cfg.RingLog2)
	p.rx = ringAt(r.mem, ringBytes(slots), p.cfg.RingLog2)
	p.txBuffers = r.mem[buffersAt : buffersAt+slots*p.cfg.BufferBytes]
	p.rxBuffers = r.mem[buffersAt+slots*p.cfg.BufferBytes:]
	for i := range slots {
		p.tx.write(uint16(i), descriptor{offset: uint32(buffersAt + i*p.cfg.BufferBytes), length: uint32(p.cfg.BufferBytes)})
		p.rx.write(uint16(i), descriptor{offset: uint32(buffersAt + (slots+i)*p.cfg.BufferBytes), length: uint32(p.cfg.BufferBytes)})
	}
	if p.txEvent, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err == nil {
		p.rxEvent, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	}
	if err != nil {
		return fmt.Errorf("memif: eventfd: %w (raise the open file limit: ulimit -n)", err)
	}
	for _, step := range []struct {
		m  *message
		fd int
	}{
		{initialize{version: protocolVersion, id: p.cfg.ID, mode: modeEthernet, secret: p.cfg.Secret, name: p.cfg.Name}.encode(), -1},
		{addRegion{index: 0, size: uint64(len(r.mem))}.encode(), r.fd},
		{addRing{flags: ringFlagClientToServer, offset: 0, log2: p.cfg.RingLog2}.encode(), p.txEvent},
		{addRing{offset: uint32(ringBytes(slots)), log2: p.cfg.RingLog2}.encode(), p.rxEvent},
	} {
		if err := p.ctl.call(step.m, step.fd); err != nil {
			return err
		}
	}
	if err := p.ctl.send(named(typeConnect, p.cfg.Name), -1); err != nil {
		return err
	}
	if _, err := p.ctl.expect(typeConnected); err != nil {
		return err
	}
	// Only now: libdpdk's server resets the rings' indices when it connects.
	p.rx.maskInterrupt()
	p.rx.advanceHead(uint16(slots)) // all receive buffers are on offer
	p.rxHead = uint16(slots)
	return nil
}
