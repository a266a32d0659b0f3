package seglog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"sync"
)

// Store is a data directory: one log per topic. Its methods may be called on any
// goroutine.
type Store struct {
	dir  string
	opts Options
	lock *dirLock

	mu     sync.Mutex
	topics map[string]*Log
}

// MaxTopicName is the longest topic name in bytes.
const MaxTopicName = 200

// CheckTopicName says whether name can name a topic: 1 to 200 ASCII letters,
// digits, '.', '_' and '-', not beginning with '.', so that it is a file name
// everywhere and readable in a log line. The error wraps ErrTopicName.
func CheckTopicName[T ~string | ~[]byte](name T) error {
	if len(name) == 0 || len(name) > MaxTopicName {
		return fmt.Errorf("%w: it has %d bytes; use 1 to %d", ErrTopicName, len(name), MaxTopicName)
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-', c == '.' && i > 0:
		default:
			return fmt.Errorf("%w: %q: use letters, digits, '_', '-' and, not in front, '.'", ErrTopicName, string(name))
		}
	}
	return nil
}

// Open locks dir, creates it if it is not there, and opens every log in it,
// which reads all segments once to check them. ErrLocked if another process has
// it; *CorruptError for damage that recovery must not mend.
func Open(dir string, o Options) (*Store, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(dir, "topics"), 0o750); err != nil {
		return nil, fmt.Errorf("seglog: data directory %s cannot be made: %w (choose one that this user may write)", dir, err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{dir: dir, opts: o, lock: lock, topics: map[string]*Log{}}
	if err := s.openAll(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) openAll() error {
	names, err := os.ReadDir(filepath.Join(s.dir, "topics"))
	if err != nil {
		return err
	}
	for _, n := range names {
		path := s.path(n.Name())
		if err := CheckTopicName(n.Name()); err != nil || !n.IsDir() {
			return fmt.Errorf("seglog: %s is not a topic's directory: move it away", filepath.Dir(path))
		}
		// A crash may have come between the two directories of a new topic.
		if err := os.MkdirAll(path, 0o750); err != nil {
			return err
		}
		l, err := openLog(path, s.opts)
		if err != nil {
			return fmt.Errorf("topic %s: %w", n.Name(), err)
		}
		s.topics[n.Name()] = l
	}
	return nil
}

func (s *Store) path(topic string) string { return filepath.Join(s.dir, "topics", topic, "0") }

// Durability is what the appends of its logs wait for.
func (s *Store) Durability() Durability { return s.opts.Durability }

// Topic returns the log of topic, nil if there is none.
func (s *Store) Topic(topic string) *Log {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.topics[topic]
}

// Topics returns the names of all topics, sorted.
func (s *Store) Topics() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.topics))
	for n := range s.topics {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// Create returns the log of topic, made new if there is none. Errors wrap
// ErrTopicName, ErrTooManyTopics, ErrFull, ErrClosed or what the system said.
func (s *Store) Create(topic string) (*Log, error) {
	if err := CheckTopicName(topic); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.topics[topic]; l != nil {
		return l, nil
	}
	if s.topics == nil {
		return nil, ErrClosed
	}
	if len(s.topics) >= s.opts.MaxTopics {
		return nil, fmt.Errorf("%w: the limit is %d: use fewer, or raise MaxTopics", ErrTooManyTopics, s.opts.MaxTopics)
	}
	path := s.path(topic)
	if err := os.MkdirAll(path, 0o750); err != nil {
		return nil, ioError("create", path, err)
	}
	l, err := openLog(path, s.opts)
	if err != nil {
		return nil, err
	}
	if s.opts.Durability == Fsync {
		// The log's own directory is synced by its first append.
		for _, dir := range []string{filepath.Dir(path), filepath.Join(s.dir, "topics"), s.dir} {
			if err := syncDir(dir); err != nil {
				return nil, errors.Join(ioError("fsync", dir, err), l.Close())
			}
		}
	}
	s.topics[topic] = l
	return l, nil
}

// Close closes every log and gives up the lock. No append may be under way.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for name, l := range s.topics {
		if cerr := l.Close(); cerr != nil {
			err = errors.Join(err, fmt.Errorf("topic %s: %w", name, cerr))
		}
	}
	s.topics = nil
	if s.lock != nil {
		err = errors.Join(err, s.lock.close())
		s.lock = nil
	}
	return err
}
