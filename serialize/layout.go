package serialize

import "encoding/binary"

// span is the range of a column: min … min+width (modulo 2^64, so that it holds
// for signed numbers too).
type span struct{ min, width uint64 }

func (s span) has(v uint64) bool { return v-s.min <= s.width }

// with is s with lo … hi in it, or lo … hi alone if s begins with them.
func (s span) with(lo, hi int64, begins bool) span {
	if !begins {
		lo, hi = min(lo, int64(s.min)), max(hi, int64(s.min+s.width))
	}
	return span{uint64(lo), uint64(hi) - uint64(lo)}
}

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

// add takes in records of one block, by value lengths and timestamps: the next
// ones of the block that the layout ends in, or the first ones of a new block.
func (l *layout) add(lens []uint32, times []int64) {
	shortest, longest, sum := lens[0], lens[0], 0
	for _, n := range lens {
		shortest, longest = min(shortest, n), max(longest, n)
		sum += int(n)
	}
	first, last, rest := times[0], l.lastStamp, times
	if l.records&(blockRecords-1) == 0 {
		l.start = l.start.with(first, first, l.records == 0)
		last, rest = first, times[1:]
	}
	earliest, latest := first, first
	if len(rest) > 0 {
		least, most := rest[0]-last, rest[0]-last
		for _, t := range rest {
			earliest, latest = min(earliest, t), max(latest, t)
			least, most = min(least, t-last), max(most, t-last)
			last = t
		}
		l.step = l.step.with(least, most, l.records <= 1)
	}
	l.value = l.value.with(int64(shortest), int64(longest), l.records == 0)
	l.time = l.time.with(earliest, latest, l.records == 0)
	l.lastStamp = last
	l.records += len(lens)
	l.payload += sum
}

// extent is what records in a row have at least and at most, and the sum of their
// lengths. The first one begins a block.
type extent struct {
	minLen, maxLen, bytes int64
	minTime, maxTime      int64
	minStep, maxStep      int64 // if there are steps
	minStart, maxStart    int64 // timestamps that begin a block
}

// take takes in the extent of n records, of which the first begins a block and the
// last has the timestamp last.
func (l *layout) take(x *extent, n int, last int64) {
	begins := l.records == 0
	l.value = l.value.with(x.minLen, x.maxLen, begins)
	l.time = l.time.with(x.minTime, x.maxTime, begins)
	l.start = l.start.with(x.minStart, x.maxStart, begins)
	if n > 1 {
		l.step = l.step.with(x.minStep, x.maxStep, begins)
	}
	l.lastStamp = last
	l.records += n
	l.payload += int(x.bytes)
}

// addRich takes in what else the records have that were taken in last: key
// lengths, header lengths and attributes, of which the first records of the batch
// have none. begins: these are the batch's first records.
func (l *layout) addRich(keys, headers []uint32, attrs []uint8, begins bool) {
	for i := range keys {
		k, h, a := int64(keys[i]), int64(headers[i]), int64(attrs[i])
		l.key, l.header, l.attr = l.key.with(k, k, begins), l.header.with(h, h, begins), l.attr.with(a, a, begins)
		l.hasKeys, l.hasHeaders, l.hasAttrs = l.hasKeys || k > 0, l.hasHeaders || h > 0, l.hasAttrs || a > 0
		l.payload += int(k + h)
		begins = false
	}
}

// merge takes in the layout of the records that follow, which begin a block.
func (l *layout) merge(next *layout) {
	if l.records == 0 {
		*l = *next
		return
	}
	for _, s := range [...]struct{ to, from *span }{
		{&l.value, &next.value}, {&l.key, &next.key}, {&l.header, &next.header}, {&l.attr, &next.attr}, {&l.time, &next.time}, {&l.start, &next.start},
	} {
		*s.to = s.to.with(int64(s.from.min), int64(s.from.min+s.from.width), false)
	}
	if next.records > 1 { // else it has no steps
		l.step = l.step.with(int64(next.step.min), int64(next.step.min+next.step.width), false)
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
