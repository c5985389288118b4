package devicefile

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxLineBytes is how long a line may be: more than two parts of a shadow take, also
// where every character of theirs is escaped.
const maxLineBytes = 512 << 10

// errLongLine is no end of the file: the next line can be read.
var errLongLine = fmt.Errorf("the line is longer than %d bytes", maxLineBytes)

// byteOrderMark is what some programs for tables begin a file with.
var byteOrderMark = []byte("\xEF\xBB\xBF")

// lines reads a file line by line. It holds one, and none that is too long.
type lines struct {
	reader *bufio.Reader
	buffer []byte
	number int64 // of the line that was read last, from 1
	bytes  int64 // that were read so far, line ends included
}

func newLines(r io.Reader) *lines { return &lines{reader: bufio.NewReaderSize(r, 64<<10)} }

// first returns the first byte of the file, past a byte order mark, without taking
// it; 0 where there is none.
func (l *lines) first() (byte, error) {
	head, err := l.reader.Peek(len(byteOrderMark) + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if head = bytes.TrimPrefix(head, byteOrderMark); len(head) == 0 {
		return 0, nil
	}
	return head[0], nil
}

// next returns the next line, without its end, until the next call. The error is
// [io.EOF] after the last, errLongLine for a line that was passed over, or that of the
// reader.
func (l *lines) next() ([]byte, error) {
	l.buffer = l.buffer[:0]
	long, began := false, false
	for {
		part, err := l.reader.ReadSlice('\n')
		l.bytes += int64(len(part))
		began = began || len(part) > 0
		if long = long || len(l.buffer)+len(part) > maxLineBytes; !long {
			l.buffer = append(l.buffer, part...)
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && !began:
			return nil, io.EOF
		case err != nil && !errors.Is(err, io.EOF):
			return nil, err
		}
		break
	}
	l.number++
	if long {
		return nil, errLongLine
	}
	line := bytes.TrimSuffix(bytes.TrimSuffix(l.buffer, []byte("\n")), []byte("\r"))
	if l.number == 1 {
		line = bytes.TrimPrefix(line, byteOrderMark)
	}
	return line, nil
}
