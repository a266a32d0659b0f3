package serialize

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
// returned true.
type Cursor struct {
	b       *Batch
	payload []byte
	i, n    int
	simple  bool
	// bounds[k] is where record k of the block begins and bounds[k+1] where it ends.
	bounds [blockRecords + 1]uint32
}

// Cursor returns a cursor before the first record. The batch must stay in place
// while it is used.
func (b *Batch) Cursor() Cursor {
	return Cursor{b: b, payload: b.payload, i: -1, n: b.n, simple: b.simple}
}

// Next moves to the next record; false if there is none.
func (c *Cursor) Next() bool {
	c.i++
	return c.i&(blockRecords-1) != 0 && c.i < c.n || c.fill()
}

// fill decodes the bounds of the block that begins with record i.
func (c *Cursor) fill() bool {
	b, i := c.b, c.i
	if i >= c.n {
		c.i = c.n
		return false
	}
	j := min(i+blockRecords, c.n)
	from := b.checkpoint(i >> blockShift)
	c.bounds[0] = from
	ends := c.bounds[1 : 1+j-i]
	if b.simple {
		prefixColumn(ends, b.value.rows(i, j), b.value.width, b.value.min, from)
		return true
	}
	clear(ends)
	addColumn(ends, b.value.rows(i, j), b.value.width)
	addColumn(ends, b.key.rows(i, j), b.key.width)
	addColumn(ends, b.header.rows(i, j), b.header.width)
	for k := range ends {
		from += b.sumMin + ends[k]
		ends[k] = from
	}
	return true
}

// Index is the record's index in the batch.
func (c *Cursor) Index() int { return c.i }

// Value is the record's value; nil for a deletion.
func (c *Cursor) Value() []byte {
	if !c.simple {
		return c.richValue()
	}
	k := c.i & (blockRecords - 1)
	return c.payload[c.bounds[k]:c.bounds[k+1]:c.bounds[k+1]]
}

func (c *Cursor) richValue() []byte { return c.Record().Value }

// Timestamp is the record's timestamp, Unix milliseconds.
func (c *Cursor) Timestamp() int64 { return c.b.Timestamp(c.i) }

// Record is the record.
func (c *Cursor) Record() Record {
	k := c.i & (blockRecords - 1)
	return c.b.record(c.i, c.bounds[k], c.bounds[k+1])
}
