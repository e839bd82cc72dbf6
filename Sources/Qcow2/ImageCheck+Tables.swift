import Units

extension ImageCheck {
    // MARK: Refcounts

    mutating func takeRefcountTable(_ bytes: UnsafeRawBufferPointer, _ first: Int) {
        let entries = Int(header.refcountTable.length / 8)
        let fields = ImageFields(bytes: bytes)
        let next = first + bytes.count / 8
        if next < entries { jobs.append(.refcountTable(first: next)) }
        for index in first..<next {
            let offset = fields.u64((index - first) * 8)
            guard offset != 0 else { continue }
            let block = "refcount block \(index)"
            guard offset % header.clusterSize == 0 else {
                corrupt("\(block) is not cluster aligned; refcount table entry corrupted")
                continue
            }
            guard offset >= header.clusterSize, offset < reader.fileLength,
                header.clusterSize <= reader.fileLength - offset
            else {
                corrupt("\(block) is outside image")
                continue
            }
            count(offset, header.clusterSize)
            if counted[offset >> UInt64(header.clusterBits)] > 1 {
                corrupt("\(block) is used twice")
                continue
            }
            jobs.append(.refcountBlock(index: UInt64(index), offset: offset))
        }
    }

    mutating func takeRefcountBlock(_ bytes: UnsafeRawBufferPointer, _ index: UInt64) {
        let order = header.refcountOrder
        let perBlock = (UInt64(bytes.count) * 8) >> UInt64(order)
        let fields = ImageFields(bytes: bytes)
        // Eight bytes that are zero say nothing; most of a block is such.
        for word in 0..<bytes.count / 8 where fields.u64(word * 8) != 0 {
            let first = UInt64(word * 64) >> UInt64(order)
            let end = max(UInt64(word * 64 + 64) >> UInt64(order), first + 1)
            for position in first..<end {
                let value = refcount(fields, Int(position))
                guard value > 0 else { continue }
                stored.add(index * perBlock + position, UInt32(clamping: value))
            }
        }
    }

    private func refcount(_ fields: ImageFields, _ position: Int) -> UInt64 {
        switch header.refcountOrder {
        case 6: return fields.u64(position * 8)
        case 5: return UInt64(fields.u32(position * 4))
        case 4: return UInt64(fields.u16(position * 2))
        case let order:
            let bits = 1 << order
            let byte = fields.bytes[position * bits / 8]
            return UInt64(byte >> UInt8(position * bits % 8)) & ((1 << UInt64(bits)) - 1)
        }
    }

    // MARK: Mapping

    mutating func takeL1(_ bytes: UnsafeRawBufferPointer, _ place: ImagePlace, _ first: Int, _ isActive: Bool) {
        let fields = ImageFields(bytes: bytes)
        let next = first + bytes.count / 8
        if next < place.count { jobs.append(.l1(place, first: next, isActive: isActive)) }
        for index in first..<next {
            let entry = fields.u64((index - first) * 8)
            let at = place.offset + UInt64(index) * 8
            let found: UInt64?
            do throws(ImageError) {
                found = try reader.tableOffset(entry: entry, at: at)
            } catch {
                corrupt("\(error)")
                continue
            }
            guard let offset = found else { continue }
            count(offset, header.clusterSize)
            if isActive { checkCopied("L2 table", entry, offset) }
            guard seenTables.insert(offset).inserted else {
                corrupt("L1 entry at byte \(at): its L2 table is also another entry's")
                continue
            }
            jobs.append(.l2(offset: offset, isActive: isActive))
        }
    }

    mutating func takeL2(_ bytes: UnsafeRawBufferPointer, _ table: UInt64, _ isActive: Bool) {
        var nextOffset: UInt64 = 0
        for place in stride(from: 0, to: bytes.count, by: header.entryBytes) {
            let entry = ImageEntry(bytes, at: place, extended: header.hasExtendedL2)
            if entry.word == 0 && entry.bitmap == 0 { continue }
            if let fault = reader.fault(entry, table: table) {
                corrupt("L2 entry at byte \(table + UInt64(place)): \(fault.text)")
                continue
            }
            if entry.isCompressed {
                let range = entry.compressedRange(clusterBits: header.clusterBits)
                let start = range.offset / 512 * 512
                count(start, min(range.end, (reader.fileLength + 511) / 512 * 512) - start)
                if isActive {
                    result.allocatedClusters += 1
                    result.compressedClusters += 1
                    result.fragmentedClusters += 1
                }
                continue
            }
            let offset = entry.offset
            guard offset != 0 else { continue }
            count(offset, header.clusterSize)
            guard isActive else { continue }
            result.allocatedClusters += 1
            if nextOffset != 0 && offset != nextOffset { result.fragmentedClusters += 1 }
            nextOffset = offset + header.clusterSize
            checkCopied("data cluster", entry.word, offset)
        }
    }

    private mutating func checkCopied(_ what: String, _ entry: UInt64, _ offset: UInt64) {
        let refcount = stored[offset >> UInt64(header.clusterBits)]
        guard (refcount == 1) != (entry & ImageEntry.copiedFlag != 0) else { return }
        corrupt("OFLAG_COPIED \(what): entry=\(String(entry, radix: 16)) refcount=\(refcount)")
    }

    // MARK: End

    mutating func compare() {
        // What is said of clusters behind the file's end takes no space.
        let fileClusters = (reader.fileLength + header.clusterSize - 1) >> UInt64(header.clusterBits)
        var last: UInt64?
        for start in ClusterCounts.chunkStarts(stored, counted) {
            for cluster in start..<start + ClusterCounts.chunkClusters where cluster < fileClusters {
                let (said, used) = (stored[cluster], counted[cluster])
                if said > 0 || used > 0 { last = cluster }
                if said < used {
                    corrupt("cluster \(cluster) refcount=\(said) reference=\(used)")
                } else if said > used {
                    result.leaks += 1
                    say("Leaked cluster \(cluster) refcount=\(said) reference=\(used)")
                }
            }
        }
        result.endOffset = last.map { ($0 + 1) << UInt64(header.clusterBits) } ?? 0
    }
}
