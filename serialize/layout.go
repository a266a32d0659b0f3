package serialize

import "encoding/binary"

// span is the range of a column: min … min+width (modulo 2^64, so that it holds
// for signed numbers too).
type span struct{ min, width uint64 }

func (s span) has(v uint64) bool { return v-s.min <= s.width }

// widened is s with v in it; signed numbers lie in order after their sign bit
// was flipped.
func (s span) widened(v, flip uint64) span {
	lo := min(s.min^flip, v^flip)
	hi := max((s.min+s.width)^flip, v^flip)
	return span{lo ^ flip, hi - lo}
}

const signBit = 1 << 63

// layout is all that decides where a batch's parts lie and how wide its columns
// are. Whoever has the same records arrives at the same layout, and so at the
// same bytes.
type layout struct {
	records, payload              int
	value, key, header, attr      span
	time                          span // timestamps
	step                          span // from a record's timestamp to the next's of its block
	start                         span // timestamps that begin a block
	lastStamp                     int64
	hasKeys, hasHeaders, hasAttrs bool
}

// include takes in one more record.
func (l *layout) include(r *Record, attr uint8) {
	value, key, header := uint64(len(r.Value)), uint64(len(r.Key)), uint64(len(r.Headers))
	stamp, step := uint64(r.Timestamp), uint64(r.Timestamp-l.lastStamp)
	switch n := l.records; {
	case n == 0:
		l.value, l.key, l.header = span{min: value}, span{min: key}, span{min: header}
		l.attr, l.time, l.start, l.step = span{min: uint64(attr)}, span{min: stamp}, span{min: stamp}, span{}
	default:
		l.value = l.value.widened(value, 0)
		l.key = l.key.widened(key, 0)
		l.header = l.header.widened(header, 0)
		l.attr = l.attr.widened(uint64(attr), 0)
		l.time = l.time.widened(stamp, signBit)
		switch {
		case n&(blockRecords-1) == 0:
			l.start = l.start.widened(stamp, signBit)
		case n == 1:
			l.step = span{min: step}
		default:
			l.step = l.step.widened(step, signBit)
		}
	}
	l.hasKeys = l.hasKeys || key > 0
	l.hasHeaders = l.hasHeaders || header > 0
	l.hasAttrs = l.hasAttrs || attr != 0
	l.lastStamp = r.Timestamp
	l.records++
	l.payload += int(value + key + header)
}

// merge takes in the layout of the records that follow, which begin a block.
func (l *layout) merge(next *layout) {
	if l.records == 0 {
		*l = *next
		return
	}
	both := func(a, b span, flip uint64) span { return a.widened(b.min, flip).widened(b.min+b.width, flip) }
	l.value, l.key, l.header = both(l.value, next.value, 0), both(l.key, next.key, 0), both(l.header, next.header, 0)
	l.attr, l.time, l.start = both(l.attr, next.attr, 0), both(l.time, next.time, signBit), both(l.start, next.start, signBit)
	if next.records > 1 { // else it has no steps
		l.step = both(l.step, next.step, signBit)
	}
	l.hasKeys = l.hasKeys || next.hasKeys
	l.hasHeaders = l.hasHeaders || next.hasHeaders
	l.hasAttrs = l.hasAttrs || next.hasAttrs
	l.lastStamp = next.lastStamp
	l.records += next.records
	l.payload += next.payload
}

// parts is where the parts of a batch begin, and how wide the columns are.
type parts struct {
	checkpoints, starts, values, keys, headers, times, attrs, end int
	startW, valueW, keyW, headerW, timeW, attrW                   int
	// steps: timestamps are steps from one to the next and block times; else they
	// are distances from the smallest, and there are no block times.
	steps bool
}

func (l *layout) parts() parts {
	n := l.records
	p := parts{
		valueW: widthFor(l.value.width), keyW: widthFor(l.key.width), headerW: widthFor(l.header.width),
		timeW: widthFor(l.time.width), attrW: widthFor(l.attr.width),
	}
	if p.timeW > 0 {
		stepW, startW := widthFor(l.step.width), widthFor(l.start.width)
		if columnBytes(n, stepW)+columnBytes(blocks(n), startW) < columnBytes(n, p.timeW) {
			p.steps, p.timeW, p.startW = true, stepW, startW
		}
	}
	p.place(n, l.payload)
	return p
}

// place computes where the parts of n records begin, widths being set.
func (p *parts) place(n, payload int) {
	p.checkpoints = HeaderBytes + payload
	p.starts = p.checkpoints + 4*checkpoints(n)
	p.values = p.starts + columnBytes(blocks(n), p.startW)
	p.keys = p.values + columnBytes(n, p.valueW)
	p.headers = p.keys + columnBytes(n, p.keyW)
	p.times = p.headers + columnBytes(n, p.headerW)
	p.attrs = p.times + columnBytes(n, p.timeW)
	p.end = p.attrs + columnBytes(n, p.attrW)
}

// rowBits is what a record adds to the columns of records.
func (p *parts) rowBits() int { return p.valueW + p.keyW + p.headerW + p.timeW + p.attrW }

// writeHeader writes the header of a batch whose body is in place and has the
// checksum bodyCRC.
func (l *layout) writeHeader(h []byte, p *parts, bodyCRC uint32) {
	le := binary.LittleEndian
	h = h[:HeaderBytes]
	var features uint16
	if l.hasKeys {
		features |= featureKeys
	}
	if l.hasHeaders {
		features |= featureHeaders
	}
	if l.hasAttrs {
		features |= featureAttributes
	}
	baseTime, minStep := l.time.min, uint64(0)
	if p.steps {
		features |= featureSteps
		baseTime, minStep = l.start.min, l.step.min
	}
	le.PutUint32(h[offMagic:], magic)
	SetBaseOffset(h, NoOffset)
	h[offVersion], h[offCompression] = Version, byte(None)
	le.PutUint16(h[offFeatures:], features)
	le.PutUint32(h[offSize:], uint32(p.end))
	le.PutUint32(h[offRecords:], uint32(l.records))
	le.PutUint32(h[offPayload:], uint32(l.payload))
	le.PutUint64(h[offTimestamp:], baseTime)
	le.PutUint32(h[offMinValue:], uint32(l.value.min))
	le.PutUint32(h[offMinKey:], uint32(l.key.min))
	le.PutUint32(h[offMinHeaders:], uint32(l.header.min))
	h[offWidths] = widthCode(p.valueW) | widthCode(p.keyW)<<4
	h[offWidths+1] = widthCode(p.headerW) | widthCode(p.attrW)<<4
	h[offWidths+2] = widthCode(p.timeW) | widthCode(p.startW)<<4
	h[offMinAttr] = byte(l.attr.min)
	le.PutUint64(h[offMinStep:], minStep)
	le.PutUint32(h[offCRC:], updateCRC(bodyCRC, h[crcFrom:]))
}

// attributesOf is a record's attribute bits.
func attributesOf(r *Record) (attr uint8) {
	if r.Key != nil {
		attr |= attrKey
	}
	if r.Value == nil {
		attr |= attrNullValue
	}
	return attr
}
