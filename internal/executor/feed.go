package executor

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/shadow"
)

// feedBatch is how many devices are taken in at once.
const feedBatch = 256

// feed takes devices in, which readAhead has read, and publishes. Its fields, and its
// methods, are of the goroutine that loop runs in, and of no other; but anybody may give
// places of the share back.
type feed struct {
	run   *run
	share *share
	pages chan page // from readAhead

	at      string   // the last name that was given to the account
	page    page     // devices not yet given to the account
	retry   []uint64 // devices to be served again at retryAt
	retryAt time.Time
	backoff wait.Backoff
}

func newFeed(r *run) *feed {
	return &feed{run: r, share: r.exec.window.join(), pages: make(chan page), at: r.task.After, backoff: newBackoff()}
}

// serve serves devices until every one has its result (true), or feeding has ended
// (false).
func (f *feed) serve() bool {
	r := f.run
	var reading sync.WaitGroup
	defer reading.Wait()
	defer r.stopFeed() // also where something panics here
	after := f.at
	reading.Go(func() { r.guard(func() { r.readAhead(after, f.pages) }) })
	f.serveAgain()
	for r.feeding.Err() == nil {
		if !f.allServed() && !r.mayFeed() {
			break
		}
		switch {
		case len(f.retry) > 0 && !r.exec.opts.Clock.Now().Before(f.retryAt):
			f.tryAgain()
		case f.takeIn():
		case f.allServed():
			return true
		default:
			f.waitForWork()
		}
	}
	return false
}

// serveAgain serves the devices that the checkpoint names as pending. They have been admitted
// before all others.
func (f *feed) serveAgain() {
	names := f.run.task.Pending
	if len(names) == 0 {
		return
	}
	batch := make([]uint64, len(names))
	for i := range batch {
		batch[i] = uint64(i)
	}
	if f.run.task.Publish != nil {
		f.publishMessages(batch, names)
		return
	}
	f.retry, f.retryAt = batch, f.run.exec.opts.Clock.Now()
}

// takeIn serves the next devices of the page, or says that there are none or no room.
func (f *feed) takeIn() bool {
	batch := f.run.account.admit(f.page.names, feedBatch)
	if len(batch) == 0 {
		return false
	}
	names, updates := f.page.take(len(batch))
	f.at = names[len(names)-1]
	if f.run.task.Publish != nil {
		f.publishMessages(batch, names)
	} else {
		f.sendDeltas(batch, names, updates)
	}
	if len(f.page.names) == 0 { // not before: the last of them may have waited long for places
		f.run.paging.adjust(-f.page.paid) // what is on its way of it is bounded by the window
		f.page.paid = 0
	}
	return true
}

// allServed reports whether every device has its result.
func (f *feed) allServed() bool {
	return f.page.last && len(f.page.names) == 0 && f.run.account.isEmpty()
}

// waitForWork waits until results have made room, there is a page where the last one has
// been taken in, a retry is due, or feeding ends.
func (f *feed) waitForWork() {
	r := f.run
	var due <-chan time.Time
	if len(f.retry) > 0 {
		timer := r.exec.opts.Clock.NewTimer(f.retryAt.Sub(r.exec.opts.Clock.Now()))
		defer timer.Stop()
		due = timer.C()
	}
	var pages chan page
	if len(f.page.names) == 0 && !f.page.last {
		pages = f.pages
	}
	select {
	case <-r.settled:
	case f.page = <-pages:
	case <-due:
	case <-r.feeding.Done():
	}
}

// publishMessages sends the task's message to these devices.
func (f *feed) publishMessages(batch []uint64, names []string) {
	task := &f.run.task
	prefix, suffix := task.Product.ProductID+"/", "/"+task.Publish.Topic
	deliveries := make([]*delivery, len(batch))
	for i, seq := range batch {
		deliveries[i] = &delivery{run: f.run, seq: seq, topic: prefix + names[i] + suffix, payload: task.Publish.Payload}
	}
	f.publish(deliveries)
}

// sendDeltas sends each of these devices the delta of its update. A device without one
// has succeeded at once: its shadow is stored, and there is nothing to tell it.
func (f *feed) sendDeltas(batch []uint64, names []string, updates []fleet.DesiredResult) {
	r := f.run
	var deliveries []*delivery
	var passing error
	for i, u := range updates {
		switch verdict, reason, message := judge(u.Err); {
		case verdict == pending:
			f.retry, passing = append(f.retry, batch[i]), u.Err
		case verdict == succeeded && len(u.Delta) > 0:
			topic := shadow.ResultTopic(r.task.Product.ProductID, names[i])
			deliveries = append(deliveries, &delivery{run: r, seq: batch[i], topic: topic, payload: u.Delta})
		default:
			r.settle(batch[i], verdict, reason, message)
		}
	}
	if passing != nil {
		f.retryAt = r.exec.opts.Clock.Now().Add(f.backoff.Step())
		r.report("updating shadows", passing)
	}
	f.publish(deliveries)
}

// tryAgain updates the shadows that could not be updated before.
func (f *feed) tryAgain() {
	r := f.run
	batch := f.retry
	f.retry = nil
	names := r.account.names(batch)
	updates := r.exec.store.ApplyDesired(r.feeding, r.task.Product, r.update(r.exec.opts.Clock.Now()), names)
	f.sendDeltas(batch, names, updates)
	if len(f.retry) == 0 {
		f.backoff = newBackoff()
		r.report("", nil)
	}
}

// publish sends these messages as the window allows. Those that are not sent when
// feeding ends stay pending.
func (f *feed) publish(deliveries []*delivery) {
	r := f.run
	for len(deliveries) > 0 {
		n, err := f.share.acquire(r.feeding, len(deliveries))
		if err != nil {
			return
		}
		if !r.task.Hold.Sure() { // it may have waited long for its places
			f.share.release(n, 0)
			if !r.mayFeed() {
				return
			}
			continue
		}
		sent := deliveries[:n]
		r.account.launch(sent, r.age())
		for i, d := range sent {
			if err := r.exec.publisher.Publish(r.feeding, d); err != nil {
				f.recall(sent[i:])
				return
			}
		}
		deliveries = deliveries[n:]
	}
}

// recall gives places back that no message has used.
func (f *feed) recall(messages []*delivery) {
	late := f.run.account.recall(messages)
	for range late {
		f.share.settle()
	}
	f.share.release(len(messages)-late, 0)
}
