package memif

import "unsafe"

// prefetchBytes is how much of a frame that came alone is fetched at once: what the CPU
// does not foresee by itself.
const prefetchBytes = 512

// Place implements dpdk.Placer.
func (p *Port) Place(n int) []byte {
	if p.txNext != p.txSent || n > p.cfg.BufferBytes || p.broken || !p.up.Load() || p.txRoom(1) < 1 {
		return nil
	}
	data := p.warm
	if data == nil {
		if data = p.txBuffer(p.txNext); data == nil {
			return nil
		}
	}
	p.warm = nil
	p.placed = uint32(n)
	return data[:n]
}

// Publish implements dpdk.Placer.
func (p *Port) Publish() {
	p.publish(p.txNext, p.placed)
	p.txNext++
	p.advance(p.txNext, 1)
	p.warmUp()
}

// warmUp takes the lines of the next buffer from the CPU that read them last: a ring's
// round ago. The peer has its turn now, and Publish would wait for them.
func (p *Port) warmUp() {
	if p.txRoomSeen() < 1 {
		return
	}
	p.warm = p.txBuffer(p.txNext)
	if n := min(int(p.placed), len(p.warm)); n > 0 {
		prefetchOwn(unsafe.Pointer(unsafe.SliceData(p.warm)), n)
	}
}

// expected is where the next frame that comes alone probably lies.
type expected struct {
	at     []byte // nil: nobody knows
	slot   uint16 // if it is in this one
	offset uint32 // server: of the last one in its region
	bytes  int    // of the last one
}

// expectLone fetches what the frame that came alone lies in, together with its
// descriptor and not behind it, and the line of the descriptor that an answer will need.
func (p *Port) expectLone() {
	if e := p.lone.at; len(e) > 0 && p.lone.slot == p.rxNext {
		prefetch(unsafe.Pointer(unsafe.SliceData(e)), len(e))
	}
	prefetchOwn(unsafe.Pointer(&p.tx.desc[int(p.txNext&p.tx.mask)*descBytes]), 1)
}

// fetchLone sees to it that the frame is fetched, n bytes in data.
func (p *Port) fetchLone(data []byte, n int) {
	first := unsafe.SliceData(data)
	if e := p.lone.at; len(e) < min(n, prefetchBytes) || unsafe.SliceData(e) != first || p.lone.slot != p.rxNext {
		prefetch(unsafe.Pointer(first), min(n, prefetchBytes))
	}
	p.lone.bytes = n
}

// foreseeLone reckons with a frame as long as the last one, behind that in slot i.
func (p *Port) foreseeLone(i uint16) {
	p.lone.at, p.lone.slot = nil, i+1
	n := min(p.lone.bytes, prefetchBytes)
	if p.role == Client {
		at := int((i+1)&p.rx.mask) * p.cfg.BufferBytes
		p.lone.at = p.rxBuffers[at : at+n]
		return
	}
	d := p.rx.read(i)
	last := p.lone.offset
	p.lone.offset = d.offset
	d.offset += d.offset - last
	d.length = uint32(n)
	p.lone.at = p.inRegion(d)
}

// Lone implements dpdk.Placer.
func (p *Port) Lone() []byte {
	if p.broken || !p.up.Load() || p.rxAvailable() != 1 {
		return nil
	}
	p.expectLone()
	data, n := p.rxFrame(p.rxNext)
	if data == nil { // RxBurst counts it
		return nil
	}
	p.fetchLone(data, n)
	return data[:n]
}

// Taken implements dpdk.Placer.
func (p *Port) Taken() {
	p.giveBack(p.rxNext)
	p.foreseeLone(p.rxNext)
	p.rxNext++
	if p.armed {
		p.armed = false
		p.rx.maskInterrupt()
	}
	p.stats.RxFrames++
	p.stats.RxBursts++
	p.publishIfMany()
}
