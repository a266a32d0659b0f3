package serialize

import "iter"

// Cursor goes through the records of a batch in order. It begins before the
// first:
//
//	c := batch.Cursor()
//	for c.Next() {
//		use(c.Value())
//	}
//
// Declare it before the loop, not in its head: a variable of the head is copied
// for every iteration. A cursor belongs to one goroutine; the views it returns
// live as long as the batch's bytes. The accessors may be called after Next
// returned true. For values alone Batch.Values costs less.
type Cursor struct {
	b       *Batch
	payload []byte
	i       int
	until   int // end of the records whose bounds are known
	// bounds[i&31] is where the value of record i begins, and gap later is where it
	// ends: gap is 1 where values lie back to back; else ends have a half of their
	// own, and bounds are known of half a block. A deletion's value ends one byte
	// before it begins.
	bounds [blockRecords + 1]uint32
	next   uint32 // where record until begins
	gap    int
	timeOf int
	time   int64 // timestamp of record timeOf, if timestamps are steps
}

// Cursor returns a cursor before the first record. The batch must stay in place
// while it is used.
func (b *Batch) Cursor() (c Cursor) {
	c.b, c.payload, c.i, c.gap = b, b.payload, -1, 1
	return c
}

// Next moves to the next record; false if there is none.
func (c *Cursor) Next() bool {
	c.i++
	return c.i < c.until || c.fill()
}

// Values yields every record's value, in order; nil for a deletion. It is the
// fastest way through a batch: a loop over it keeps in registers what a Cursor keeps
// in memory.
func (b *Batch) Values() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		c := Cursor{b: b, gap: 1}
		for payload := b.payload; c.fill(); c.i = c.until {
			first, n := c.i&(blockRecords-1), c.until-c.i
			starts, ends := c.bounds[first:first+n], c.bounds[first+c.gap:]
			ends = ends[:len(starts)]
			for k := range starts {
				from, end := int(starts[k]), int(ends[k])
				var v []byte
				if from <= end {
					v = payload[from:end:end]
				}
				if !yield(v) {
					return
				}
			}
		}
	}
}

// fill decodes bounds from record i on, where those that are known end.
func (c *Cursor) fill() bool {
	b := c.b
	if c.until == b.n {
		c.i = b.n
		return false
	}
	if !b.simple {
		c.fillRich()
		return true
	}
	count := min(blockRecords, b.n-c.i)
	c.bounds[0] = c.next
	prefixColumn(c.bounds[1:1+count], b.from(&b.value, c.i), int(b.value.width), b.value.min, c.next)
	c.next = c.bounds[count]
	c.until += count
	return true
}

// fillRich does so for half a block of records that may have keys and headers.
func (c *Cursor) fillRich() {
	const half = blockRecords / 2
	b, first, from := c.b, c.i, c.next
	c.gap = half - first&half<<1 // half or -half
	c.until = min(first+half, b.n)
	var keys, values, headers [half]uint32
	count := c.until - first
	addColumn(keys[:count], b.from(&b.key, first), int(b.key.width))
	addColumn(values[:count], b.from(&b.value, first), int(b.value.width))
	addColumn(headers[:count], b.from(&b.header, first), int(b.header.width))
	for i := range count {
		k := (first + i) & (blockRecords - 1)
		from += b.key.min + keys[i]
		c.bounds[k] = from
		if b.attributes(first+i)&attrNullValue != 0 {
			c.bounds[k]++
		}
		from += b.value.min + values[i]
		c.bounds[k+c.gap] = from
		from += b.header.min + headers[i]
	}
	c.next = from
}

// Index is the record's index in the batch.
func (c *Cursor) Index() int { return c.i }

// Value is the record's value; nil for a deletion.
func (c *Cursor) Value() []byte {
	k := c.i & (blockRecords - 1)
	from, end := int(c.bounds[k]), int(c.bounds[k+c.gap])
	if from > end {
		return nil
	}
	return c.payload[from:end:end]
}

// Timestamp is the record's timestamp, Unix milliseconds.
func (c *Cursor) Timestamp() int64 {
	b := c.b
	if !b.steps {
		return b.baseTime + int64(b.at64(&b.time, c.i))
	}
	at := c.timeOf
	if first := c.i &^ (blockRecords - 1); at <= first {
		at = first
		c.time = b.baseTime + int64(b.at64(&b.starts, first>>blockShift))
	}
	for ; at < c.i; at++ {
		c.time += b.minStep + int64(b.at64(&b.time, at+1))
	}
	c.timeOf = at
	return c.time
}

// Record is the record.
func (c *Cursor) Record() (r Record) {
	k := c.i & (blockRecords - 1)
	from, end := c.bounds[k], c.bounds[k+c.gap]
	if !c.b.simple {
		from = min(from, end) - c.b.keyLen(c.i)
		end += c.b.headerLen(c.i)
	}
	c.b.record(&r, c.i, from, end, c.Timestamp())
	return r
}
