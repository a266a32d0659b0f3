package softroce

// txPool is the transmit frames of a link to the kernel, which copies what it sends:
// one burst of them is enough.
type txPool struct {
	mem      []byte
	stride   int // bytes of a frame with its headroom
	headroom int // bytes in front of each for headers
	room     int // bytes of Frame.Data
	free     [burst]uint16
	n        int // of free
}

func newTxPool(headroom, room int) txPool {
	p := txPool{stride: headroom + frameBytes, headroom: headroom, room: room, n: burst}
	p.mem = make([]byte, burst*p.stride)
	for i := range p.free {
		p.free[i] = uint16(burst - 1 - i)
	}
	return p
}

func (p *txPool) alloc(frames []Frame) int {
	n := min(len(frames), p.n)
	for i := range frames[:n] {
		p.n--
		at := int(p.free[p.n])
		frames[i].Data = p.mem[at*p.stride+p.headroom:][:p.room:p.room]
		frames[i].Len = 0
		frames[i].Handle = uint64(at)
	}
	return n
}

func (p *txPool) give(frames []Frame) {
	for i := range frames {
		p.free[p.n] = uint16(frames[i].Handle)
		p.n++
	}
}

// whole is a frame from its headroom on.
func (p *txPool) whole(f *Frame) []byte { return p.mem[int(f.Handle)*p.stride:][:p.headroom+f.Len] }
