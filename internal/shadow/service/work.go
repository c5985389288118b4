package service

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"batchtask.dev/operator/internal/fleet"
	"batchtask.dev/operator/internal/shadow"
)

// The pause before a store is asked again doubles from the one to the other.
const (
	retryMin = 20 * time.Millisecond
	retryMax = 2 * time.Second
)

// serve carries out the messages of a line, one after the other, until there is none.
func (s *Service) serve(l *line) {
	for j := s.queue.first(l); j != nil; j = s.queue.first(l) {
		s.carryOut(l, j)
		s.queue.leave(l)
		s.queue.done(l)
		s.metrics.queueDepth.Dec()
	}
}

// carryOut carries out a message and answers it, unless the service ends before.
func (s *Service) carryOut(l *line, j *job) {
	ctx, cancel := s.queue.begin(s.working, l, j)
	defer cancel(nil)
	d := l.device
	log := s.log.WithValues("product", d.productID, "device", d.name)
	message, answer, result, err := s.attempt(ctx, l, j)
	switch {
	case s.working.Err() != nil && result == shadow.ResultInternal:
		return // the service has ended, and the fault is its own
	case errors.Is(err, errStoreAway):
		s.metrics.refused.WithLabelValues(refusedAway).Inc() // the log has it once
	case errors.Is(err, errHeldUp):
		s.metrics.refused.WithLabelValues(refusedHeldUp).Inc()
		log.V(1).Info("Gave a message up", "reason", err.Error())
	case result == shadow.ResultInternal:
		log.Error(err, "Cannot serve a device")
	case result != shadow.ResultOK:
		// Not the error: it names keys of the message.
		log.V(1).Info("Refused a message", "result", result)
	}
	s.reply(d, j.message, message, j.arrived, result, answer)
}

// attempt tries to carry out a message. A fault of the program is that of the one message.
func (s *Service) attempt(ctx context.Context, l *line, j *job) (message shadow.Message, answer []byte, result shadow.Result, err error) {
	defer func() {
		if fault := recover(); fault != nil {
			answer, result = nil, shadow.ResultInternal
			err = fmt.Errorf("panic: %v\n%s", fault, debug.Stack())
		}
	}()
	if err := s.queue.enter(ctx, l); err != nil {
		return shadow.Addressee(j.message.Payload()), nil, shadow.ResultInternal, err
	}
	limited, cancel := context.WithTimeout(ctx, s.options.RetryTime)
	defer cancel()
	if message, err = shadow.ParseMessage(j.message.Payload()); err != nil {
		answer, result, err = s.failure(message, err)
	} else {
		answer, result, err = s.answer(limited, l, message)
	}
	if result == shadow.ResultInternal && ctx.Err() != nil {
		err = context.Cause(ctx) // it says why it was not tried for longer
	}
	return message, answer, result, err
}

// reply answers a message, with the mere result where answer is nil, and acknowledges it.
func (s *Service) reply(d device, m message, asked shadow.Message, arrived time.Time, result shadow.Result, answer []byte) {
	if answer == nil {
		answer = shadow.AnswerError(asked, result, s.now())
	}
	s.metrics.answered(asked, result, s.clock.Since(arrived).Seconds())
	if err := m.Reply(d.resultTopic(), answer); err != nil {
		s.metrics.answersLost.Inc()
		s.log.V(1).Info("Lost an answer", "product", d.productID, "device", d.name, "reason", err.Error())
		return
	}
	m.Ack()
}

// probe looks whether the store of a product that is away answers. It is no part of the
// message that has caused it, which would else hold up the acknowledgements of others.
func (s *Service) probe(d device) {
	ctx, cancel := context.WithTimeout(s.working, probeTimeout)
	defer cancel()
	err := errProbe
	defer func() {
		fault := recover()
		if !passing(err) {
			err = nil // it answers
		}
		s.queue.hasProbed(d.productID, err)
		if fault != nil {
			s.log.Error(fmt.Errorf("panic: %v\n%s", fault, debug.Stack()), "Cannot look whether a store is back", "product", d.productID)
		}
	}()
	namespace, err1 := s.products.Namespace(ctx, d.productID)
	if err1 == nil && namespace != "" {
		_, err1 = s.store.ReadShadow(ctx, fleet.Product{Namespace: namespace, ProductID: d.productID}, d.name)
	}
	err = err1
}

// errProbe is what a probe that panics ends with.
var errProbe = errors.New("the probe has failed")

// retry calls f, with the turn of the line, until it succeeds, fails for good, or ctx ends.
func (s *Service) retry(ctx context.Context, l *line, f func() error) error {
	for pause := retryMin; ; pause = min(2*pause, retryMax) {
		err := f()
		if !passing(err) || ctx.Err() != nil {
			return err
		}
		s.queue.leave(l)
		timer := s.clock.NewTimer(pause)
		select {
		case <-timer.C():
		case <-ctx.Done():
			timer.Stop()
			return err
		}
		if s.queue.enter(ctx, l) != nil {
			return err
		}
	}
}

// call calls the store of a line's product, and notes how it does.
func (s *Service) call(ctx context.Context, l *line, f func() error) error {
	return s.retry(ctx, l, func() (err error) {
		s.queue.calling(l)
		failed := errCall
		defer func() { s.queue.called(l, failed) }()
		err = f()
		switch {
		case s.working.Err() != nil:
			failed = nil // the fault may be our own
		case passing(err):
			failed = err
		default:
			failed = nil
		}
		return err
	})
}

// errCall is what a call that panics ends with.
var errCall = errors.New("the call has failed")

// passing says whether trying again may help: not where the message itself is
// refused, where there is no device, or where its shadow cannot be stored.
func passing(err error) bool {
	if shadow.ResultOf(err) != shadow.ResultInternal || errors.Is(err, fleet.ErrDeviceGone) || errors.Is(err, shadow.ErrLastVersion) {
		return false
	}
	_, final := errors.AsType[*fleet.DeviceError](err)
	return !final
}
