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

// first passes over a byte order mark, white space and empty lines at the beginning of the
// file, and returns the byte that comes then, without taking it; 0 where there is none. The
// error is a [*HeaderError], for a file that is no text in UTF-8, or that of the reader.
func (l *lines) first() (byte, error) {
	if _, err := l.reader.Peek(4); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	head, err := l.reader.Peek(min(l.reader.Buffered(), 512)) // what has come: more may never
	if err != nil {
		return 0, err
	}
	if err := checkEncoding(head); err != nil {
		return 0, &HeaderError{Err: err}
	}
	if bytes.HasPrefix(head, byteOrderMark) {
		n, _ := l.reader.Discard(len(byteOrderMark)) // it is there
		l.bytes += int64(n)
	}
	for {
		b, err := l.reader.ReadByte()
		switch {
		case errors.Is(err, io.EOF):
			return 0, nil
		case err != nil:
			return 0, err
		case b == '\n':
			l.number++
		case b != ' ' && b != '\t' && b != '\r':
			return b, l.reader.UnreadByte()
		}
		l.bytes++
	}
}

// checkEncoding looks at how a file begins. Names of columns and keys are ASCII, so each
// second byte of a file in UTF-16 is 0 there.
func checkEncoding(head []byte) error {
	big, little := bytes.HasPrefix(head, []byte("\xFE\xFF")), bytes.HasPrefix(head, []byte("\xFF\xFE"))
	if len(head) >= 2 && !big && !little {
		big, little = head[0] == 0, head[1] == 0
	}
	const convert = "the file is UTF-16 and must be UTF-8: convert it (iconv -f %s -t UTF-8 FILE), or save it as UTF-8 in the program that made it"
	switch {
	case big:
		return fmt.Errorf(convert, "UTF-16BE")
	case little:
		return fmt.Errorf(convert, "UTF-16LE")
	case bytes.IndexByte(head, 0) >= 0:
		return errors.New("the file is no text: it must be CSV or NDJSON in UTF-8, neither compressed nor a workbook")
	}
	return nil
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
	return bytes.TrimSuffix(bytes.TrimSuffix(l.buffer, []byte("\n")), []byte("\r")), nil
}
