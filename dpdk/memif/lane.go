package memif

const (
	// cacheLine is how many bytes CPUs take from each other at once.
	cacheLine = 64
	// prefetchBytes is how much of a frame that came alone is fetched while its headers are
	// looked at: what the CPU does not foresee by itself.
	prefetchBytes = 512
)

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
// round ago. The peer has its turn now, and Publish would wait for them. In ping-pong of
// 128 B that is a fifth of a round trip.
func (p *Port) warmUp() {
	if p.txRoomSeen() < 1 {
		return
	}
	p.warm = p.txBuffer(p.txNext)
	for at := 0; at < int(p.placed) && at < len(p.warm); at += cacheLine {
		p.warm[at] = 0
	}
}
